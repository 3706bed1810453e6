// The QEMU command line of a SnowFlock VM, as a pure function. Master VM and clone differ only in where their RAM lies,
// in what boots, and in waiting for an incoming device state; every device is the same, in the same order, or the
// device state of one would not load in the other.

export type Accel = 'kvm' | 'tcg';

/** Fixed geometry, so that QEMU does not read a disk's first sector to guess it while nobody can serve that sector yet. */
const DISK_GEOMETRY = 'cyls=1024,heads=16,secs=63';
/** Cap on the translation cache of TCG: each VM has its own, and it is never shared with clones. */
const TCG_CACHE_MIB = 128;
/**
 * Without the promise that `rep movsb` is fast: TCG executes it a byte at a time, and guests that believe it copy and clear memory three to four
 * times slower. It runs all the same in a guest that started with the promise.
 */
const TCG_CPU = 'max,-erms,-fsrm';

/**
 * Room for the channel and the console port that Linux wants. A port is two queues, each two pages of the guest's memory, and loading a device
 * state looks at every queue: with QEMU's 31 ports a VM waited for 120 pages before it ran. Device states that were saved with 31 load.
 */
const CHANNEL_PORTS = 'max_ports=2';

/** QEMU's end of the guest channel. */
export const AGENT_CHARDEV = 'agent';

/** Paths of one VM's run directory; short, because unix socket paths may have 107 bytes. */
export interface VmPaths {
  readonly directory: string;
  readonly qmp: string;
  readonly agent: string;
  readonly console: string;
  readonly consoleLog: string;
  readonly fork: string;
  readonly incoming: string;
  readonly deviceState: string;
  readonly stderr: string;
  readonly pid: string;
}

export function vmPaths(directory: string): VmPaths {
  const at = (name: string): string => `${directory}/${name}`;
  return {
    directory,
    qmp: at('qmp'),
    agent: at('agent'),
    console: at('con'),
    consoleLog: at('console.log'),
    fork: at('fork'),
    incoming: at('in'),
    deviceState: at('device.state'),
    stderr: at('qemu.log'),
    pid: at('pid'),
  };
}

/** What the VM runs first. */
export type VmOrigin =
  | { readonly kind: 'boot'; readonly kernel: string; readonly initrd: string; readonly append: string }
  /** The firmware and nothing else; what the fork is tested with. */
  | { readonly kind: 'firmware' }
  /** Nothing, until it is given a device state. */
  | { readonly kind: 'incoming' };

/** Where the VM's RAM lies. */
export type VmRam =
  /** A master VM's: anonymous memory with huge pages, cheap to fork. */
  | { readonly kind: 'anonymous' }
  /** A clone's is a private mapping of the file that a memtap serves; shared is for a template (bench). */
  | { readonly kind: 'file'; readonly path: string; readonly share: boolean };

export interface VmSpec {
  readonly name: string;
  readonly accel: Accel;
  readonly vcpus: number;
  readonly memoryMib: number;
  readonly paths: VmPaths;
  readonly origin: VmOrigin;
  readonly ram: VmRam;
  /** In place of QEMU's own; a clone needs the same as its parent. */
  readonly firmware?: string;
  /** The VM's writable qcow2 overlay and the read-only backing it lies on. */
  readonly disk: {
    readonly overlay: string;
    readonly backing: string;
    readonly backingFormat: 'raw' | 'qcow2';
  } | null;
  readonly nic: { readonly tap: string; readonly mac: string; readonly mtu: number } | null;
}

/** Node name of the disk that a VM starts with; later overlays of a master VM count on from it. */
export function diskNode(generation: number): string {
  return `disk${generation}`;
}

/** Of an overlay, with what it lies on. */
export function diskNodeOptions(
  disk: NonNullable<VmSpec['disk']> & { readonly generation: number },
): Record<string, unknown> {
  // no-flush: a VM's overlay lives only as long as its host keeps running, so nothing is gained by making it wait for the platter.
  return {
    driver: 'qcow2',
    'node-name': diskNode(disk.generation),
    cache: { direct: false, 'no-flush': true },
    discard: 'unmap',
    file: { driver: 'file', filename: disk.overlay, cache: { direct: false, 'no-flush': true } },
    backing: {
      driver: disk.backingFormat,
      'read-only': true,
      file: { driver: 'file', filename: disk.backing },
    },
  };
}

function diskArgs(disk: NonNullable<VmSpec['disk']>): string[] {
  return [
    '-blockdev',
    JSON.stringify(diskNodeOptions({ ...disk, generation: 0 })),
    '-device',
    `virtio-blk-pci,drive=${diskNode(0)},${DISK_GEOMETRY}`,
  ];
}

export function buildQemuArgs(spec: VmSpec): string[] {
  const size = `${spec.memoryMib}M`;
  const machine =
    'q35,suppress-vmdesc=on,memory-backend=ram,mem-merge=off,hpet=off,vmport=off,smm=off,sata=off,smbus=off,usb=off';
  const args = ['-name', spec.name, '-machine', machine];
  if (spec.accel === 'kvm') args.push('-accel', 'kvm', '-cpu', 'host,-arch-capabilities');
  else args.push('-accel', `tcg,thread=multi,tb-size=${TCG_CACHE_MIB}`, '-cpu', TCG_CPU);
  args.push(
    '-smp',
    String(spec.vcpus),
    '-m',
    size,
    '-no-user-config',
    '-nodefaults',
    '-display',
    'none',
    '-no-reboot',
  );
  args.push('-rtc', 'base=utc,clock=host', '-global', 'migration.send-configuration=off');
  args.push(
    '-object',
    spec.ram.kind === 'anonymous'
      ? `memory-backend-ram,id=ram,size=${size}`
      : `memory-backend-file,id=ram,size=${size},share=${spec.ram.share ? 'on' : 'off'},mem-path=${spec.ram.path}`,
  );
  args.push(
    '-chardev',
    `socket,id=console,path=${spec.paths.console},server=on,wait=off,logfile=${spec.paths.consoleLog},logappend=on`,
  );
  args.push('-serial', 'chardev:console');
  args.push('-device', `virtio-serial-pci,id=vs0,${CHANNEL_PORTS}`);
  args.push('-chardev', `socket,id=${AGENT_CHARDEV},path=${spec.paths.agent},server=on,wait=off`);
  args.push('-device', `virtserialport,chardev=${AGENT_CHARDEV},name=snowflock,nr=1`);
  args.push('-device', 'virtio-balloon-pci,free-page-reporting=on');
  if (spec.nic) {
    args.push('-netdev', `tap,id=net0,ifname=${spec.nic.tap},script=no,downscript=no`);
    // No announcing: a clone has its own address to tell of, not its parent's. Switched off by `announce-rounds` alone, QEMU 7.2
    // dies when the guest then resets the device, as it does before it powers off.
    const nic = { mac: spec.nic.mac, host_mtu: spec.nic.mtu, guest_announce: 'off', romfile: '' };
    const options = Object.entries(nic).map(([name, value]) => `${name}=${value}`);
    args.push('-device', ['virtio-net-pci', 'netdev=net0', ...options].join(','));
  }
  if (spec.disk) args.push(...diskArgs(spec.disk));
  args.push('-qmp', `unix:${spec.paths.qmp},server=on,wait=off`);
  if (spec.firmware !== undefined) args.push('-bios', spec.firmware);
  args.push(...originArgs(spec.origin));
  return args;
}

function originArgs(origin: VmOrigin): string[] {
  switch (origin.kind) {
    case 'boot':
      return ['-kernel', origin.kernel, '-initrd', origin.initrd, '-append', origin.append];
    case 'firmware':
      return [];
    case 'incoming':
      return ['-S', '-incoming', 'defer'];
    default:
      return origin satisfies never;
  }
}
