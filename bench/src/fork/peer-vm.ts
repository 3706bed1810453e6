// A VM of the peers: QEMU with the same guest, but without daemons.

import { copyFile, mkdtemp, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { ImageManifest } from '@snowflock/image';
import { GuestFrameType, type GuestFrame, type GuestIdentity } from '@snowflock/protocol';
import {
  AgentLink,
  createOverlay,
  QemuProcess,
  vmPaths,
  within,
  type Accel,
  type VmOrigin,
  type VmRam,
  type VmSpec,
} from '@snowflock/vm';

const BOOT_TIMEOUT_MS = 120_000;
const SAVE_TIMEOUT_MS = 300_000;
const FILL_TIMEOUT_MS = 300_000;
const RUN_TIMEOUT_MS = 300_000;
/** Exec sessions of a VM's guest. */
const FILL_SESSION = 1;
const RUN_SESSION = 2;

export interface PeerGuest {
  readonly accel: Accel;
  readonly image: ImageManifest;
  readonly forkShim: string;
  readonly memoryMib: number;
  /** Gets a VM that has booted into the state that is copied. */
  readonly warm: (vm: PeerVm) => Promise<void>;
  /** On a file system in memory, with room for the VM's RAM twice. */
  readonly scratch: string;
}

const IDENTITY: GuestIdentity = {
  clusterid: 0,
  vmid: 0,
  nclones: 0,
  hostname: 'bench',
  ip: '10.0.0.1',
  prefix: 16,
  mac: '52:00:00:00:00:00',
  mtu: 1450,
  timeNs: 0n,
  entropy: Buffer.alloc(64, 7),
};

export interface PeerVm extends AsyncDisposable {
  readonly qemu: QemuProcess;
  readonly link: AgentLink;
}

export const ANONYMOUS: VmRam = { kind: 'anonymous' };

/** That boots; copies are named otherwise. */
export const PARENT = 'parent';

export async function start(
  guest: PeerGuest,
  where: { name: string; directory: string },
  boot: { origin: VmOrigin; ram: VmRam },
): Promise<PeerVm> {
  const { name, directory } = where;
  const qemu = await QemuProcess.start(
    {
      name,
      accel: guest.accel,
      vcpus: 1,
      memoryMib: guest.memoryMib,
      paths: vmPaths(join(directory, name)),
      ...boot,
      disk: await diskOf(guest, where),
      nic: null,
    },
    { forkShim: guest.forkShim },
  );
  const link = await AgentLink.connect(qemu.paths.agent, { timeoutMs: 5000, gone: qemu.ended });
  return { qemu, link, [Symbol.asyncDispose]: async () => void (await qemu.kill()) };
}

/** Null where the image has none that it needs. A copy has one of its own, as the parent's was just before: bytes of RAM are counted, none of a disk. */
async function diskOf(
  { image: { append, disk } }: PeerGuest,
  { name, directory }: { name: string; directory: string },
): Promise<VmSpec['disk']> {
  const overlayOf = (vm: string): string => join(directory, `${vm}.qcow2`);
  if (!disk || !append.includes('snowflock.root=')) return null;
  const { path: backing, format: backingFormat } = disk;
  if (name === PARENT) await createOverlay({ path: overlayOf(name), backing, backingFormat });
  else await copyFile(overlayOf(PARENT), overlayOf(name));
  return { overlay: overlayOf(name), backing, backingFormat };
}

export function booting(guest: PeerGuest, ram: VmRam): { origin: VmOrigin; ram: VmRam } {
  const { kernel, initrd, append } = guest.image;
  return { origin: { kind: 'boot', kernel, initrd, append }, ram };
}

/** Resolves when the agent has said hello and taken its identity. */
export async function answered(vm: PeerVm): Promise<void> {
  const identified = vm.link.identified(0, BOOT_TIMEOUT_MS);
  vm.link.on('frame', (frame) => {
    if (frame.type === GuestFrameType.hello)
      vm.link.sendIdentity(0, { ...IDENTITY, timeNs: BigInt(Date.now()) * 1_000_000n });
  });
  await identified;
}

/** Fills memory in the guest, as the fork's guest does; the program stays. */
export async function fill(vm: PeerVm, mib: number): Promise<void> {
  const id = FILL_SESSION;
  const ready = new Promise<void>((resolve) =>
    vm.link.on('frame', (frame) => {
      if (frame.type === GuestFrameType.execOut && frame.id === id && frame.payload.includes('ready'))
        resolve();
    }),
  );
  vm.link.send({ type: GuestFrameType.execStart, id, payload: `/usr/lib/snowflock/sftouch\0${mib}\0` });
  await within(ready, FILL_TIMEOUT_MS, `filling ${mib} MiB in the guest`);
}

/** Runs a program in the guest to its end. Throws when it fails. */
export async function runIn(vm: PeerVm, argv: readonly string[]): Promise<void> {
  const id = RUN_SESSION;
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  let said = '';
  const onFrame = (frame: GuestFrame): void => {
    if (frame.id !== id) return;
    if (frame.type === GuestFrameType.execOut) said += frame.payload.toString();
    if (frame.type !== GuestFrameType.execExit) return;
    if (frame.payload.readInt32LE(0) === 0) resolve();
    else reject(new Error(`in a peer's VM, ${argv[0] ?? ''} failed: ${said.slice(-2000)}`));
  };
  vm.link.on('frame', onFrame);
  vm.link.send({ type: GuestFrameType.execStart, id, payload: argv.map((word) => `${word}\0`).join('') });
  try {
    await within(promise, RUN_TIMEOUT_MS, `${argv[0] ?? ''} in a peer's VM`);
  } finally {
    vm.link.off('frame', onFrame);
  }
}

/** One question that the guest's agent answers: is the VM there? */
export async function ping(vm: PeerVm, id: number): Promise<void> {
  await vm.link.hold(id, BOOT_TIMEOUT_MS);
  vm.link.sendIdentity(id, IDENTITY);
  vm.link.release();
}

export async function migrationDone(vm: PeerVm, begin: () => Promise<unknown>): Promise<void> {
  const done = new Promise<void>((resolve, reject) =>
    vm.qemu.qmp.on('event', (name: string, data: Record<string, unknown>) => {
      if (name === 'MIGRATION' && data['status'] === 'completed') resolve();
      if (name === 'MIGRATION' && data['status'] === 'failed')
        reject(new Error('the migration stream failed'));
    }),
  );
  await begin();
  await within(done, SAVE_TIMEOUT_MS, 'saving or loading a VM');
}

/** QEMU reports a migration as completed a moment before it lets the VM go on. */
export async function goOn(vm: PeerVm): Promise<void> {
  const deadline = performance.now() + SAVE_TIMEOUT_MS;
  for (;;) {
    try {
      await vm.qemu.qmp.execute({ execute: 'cont' });
      return;
    } catch (error) {
      if (!String(error).includes('not finalized') || performance.now() > deadline) throw error;
      await sleep(1);
    }
  }
}

export function capabilities(names: readonly string[]): {
  execute: string;
  arguments: Record<string, unknown>;
} {
  return {
    execute: 'migrate-set-capabilities',
    arguments: { capabilities: ['events', ...names].map((capability) => ({ capability, state: true })) },
  };
}

export async function inScratch<T>(guest: PeerGuest, work: (directory: string) => Promise<T>): Promise<T> {
  const directory = await mkdtemp(join(guest.scratch, 'sf-peer-'));
  try {
    return await work(directory);
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
}
