// What SnowFlock needs of a machine, each tried, not merely looked for. A check never throws: what went wrong is its
// answer.

import { createSocket } from 'node:dgram';
import { closeSync, existsSync, openSync, readFileSync, statfsSync } from 'node:fs';
import { availableParallelism, totalmem } from 'node:os';
import { dirname, join } from 'node:path';
import { runCommand } from '@snowflock/lab';
import { toSnowflockError } from '@snowflock/protocol';
import { formatBytes } from '../table.ts';

export type CheckStatus = 'ok' | 'warn' | 'fail';

export interface CheckResult {
  readonly name: string;
  readonly status: CheckStatus;
  /** What was found. */
  readonly found: string;
  /** What to do about it; empty when ok. */
  readonly advice: string;
}

export interface Check {
  readonly name: string;
  readonly run: () => Promise<Omit<CheckResult, 'name'>>;
}

const ROOT = join(import.meta.dirname, '..', '..', '..', '..');
const TOOL_TIMEOUT_MS = 15_000;
const GIB = 2 ** 30;
/** One small VM and its page cache; a lab with a few. */
const MEMORY_MIN_BYTES = GIB;
const MEMORY_GOOD_BYTES = 4 * GIB;
/** The images are about 1 GiB; building one needs as much again. */
const DISK_MIN_BYTES = 2 * GIB;
const DISK_GOOD_BYTES = 6 * GIB;
const NODE_MAJOR = 24;
const QEMU_MAJOR_MIN = 7;
const MULTICAST_GROUP = '239.83.70.1';
const MULTICAST_TIMEOUT_MS = 2000;
const SETUP = 'run npm run setup as root';

type Outcome = Omit<CheckResult, 'name'>;
const ok = (found: string): Outcome => ({ status: 'ok', found, advice: '' });
const warn = (found: string, advice: string): Outcome => ({ status: 'warn', found, advice });
const fail = (found: string, advice: string): Outcome => ({ status: 'fail', found, advice });

interface ToolResult {
  /** null: could not be started, or killed at the deadline. */
  readonly status: number | null;
  readonly missing: boolean;
  readonly stdout: string;
  readonly text: string;
}

async function runTool(file: string, args: readonly string[], input = ''): Promise<ToolResult> {
  try {
    const { status, stdout, stderr } = await runCommand([file, ...args], {
      input,
      timeoutMs: TOOL_TIMEOUT_MS,
    });
    const [text = ''] = (stderr || stdout).trim().split('\n');
    return { status, missing: false, stdout, text: text || `exit status ${status ?? 'by signal'}` };
  } catch (error) {
    const { code, message } = toSnowflockError(error);
    const text = code === 'timeout' ? 'no answer in time' : message;
    return { status: null, missing: code === 'unavailable', stdout: '', text };
  }
}

function checkDevice(path: string, module: string): Outcome {
  if (!existsSync(path))
    return fail(
      `${path} is not there`,
      `load the kernel module (modprobe ${module}), or give it to this container`,
    );
  try {
    closeSync(openSync(path, 'r+'));
    return ok(`${path} opens`);
  } catch (error) {
    return fail(`${path}: ${(error as Error).message}`, 'run as root, or give it to this container');
  }
}

function checkFreeDisk(path: string): Outcome {
  let place = path;
  while (!existsSync(place)) place = dirname(place);
  const info = statfsSync(place);
  const free = info.bavail * info.bsize;
  const found = `${formatBytes(free)} free for ${path}`;
  if (free < DISK_MIN_BYTES) return fail(found, `make room: at least ${formatBytes(DISK_MIN_BYTES)}`);
  return free < DISK_GOOD_BYTES
    ? warn(found, `building both images wants ${formatBytes(DISK_GOOD_BYTES)}`)
    : ok(found);
}

async function checkKvm(): Promise<Outcome> {
  const { status, stdout, text } = await runTool(process.execPath, [
    join(ROOT, 'packages/vm/src/accel-probe-main.ts'),
  ]);
  let probe: unknown;
  try {
    probe = JSON.parse(stdout.trim().split('\n').at(-1) ?? '');
  } catch {
    return fail(
      `could not be measured: ${status === 0 ? 'no answer' : text}`,
      `${SETUP}; without QEMU nothing can run`,
    );
  }
  const { kvm, chosen } = probe as {
    kvm?: { present?: unknown; usable?: unknown; why?: unknown };
    chosen?: unknown;
  };
  const why = typeof kvm?.why === 'string' ? kvm.why : '';
  if (kvm?.usable === true) return ok(why || `KVM works; VMs use ${String(chosen)}`);
  const advice =
    kvm?.present === true
      ? 'VMs run under software emulation, some 10 times slower: all works. On a cloud machine, ask for nested virtualisation'
      : 'VMs run under software emulation, some 10 times slower: all works. For speed switch on virtualisation and load kvm_intel or kvm_amd';
  return warn(why || 'KVM is not usable', advice);
}

/** A datagram to a group, through the loopback device, back to this process. */
function checkMulticast(): Promise<Outcome> {
  const advice =
    "without it VM state is sent to each host by itself (network_mode = 'unicast'): all works, slower to many hosts";
  return new Promise((resolve) => {
    const socket = createSocket({ type: 'udp4', reuseAddr: true });
    const done = (outcome: Outcome): void => {
      clearTimeout(timer);
      socket.close();
      resolve(outcome);
    };
    const timer = setTimeout(
      () => done(warn('a datagram to a group did not come back', advice)),
      MULTICAST_TIMEOUT_MS,
    );
    socket.once('error', (error) => done(warn(error.message, advice)));
    socket.once('message', () => done(ok('a datagram to a group came back')));
    socket.bind(0, () => {
      try {
        socket.addMembership(MULTICAST_GROUP, '127.0.0.1');
        socket.setMulticastInterface('127.0.0.1');
        socket.setMulticastLoopback(true);
        socket.send('snowflock', socket.address().port, MULTICAST_GROUP);
      } catch (error) {
        done(warn((error as Error).message, advice));
      }
    });
  });
}

function checkHugePages(): Outcome {
  const path = '/sys/kernel/mm/transparent_hugepage/enabled';
  const advice = `a fork then copies many small page-table entries; as root: echo madvise > ${path}`;
  if (!existsSync(path))
    return warn('this kernel has no transparent huge pages', 'forks of large VMs pause them longer');
  const mode = /\[(\w+)\]/.exec(readFileSync(path, 'utf8'))?.[1] ?? 'unknown';
  return mode === 'madvise' || mode === 'always'
    ? ok(`transparent huge pages: ${mode}`)
    : warn(`transparent huge pages: ${mode}`, advice);
}

function checkMemory(): Outcome {
  const available =
    Number(/^MemAvailable:\s+(\d+) kB/m.exec(readFileSync('/proc/meminfo', 'utf8'))?.[1] ?? 0) * 1024;
  const found = `${formatBytes(available)} available of ${formatBytes(totalmem())}, ${availableParallelism()} CPUs`;
  if (available < MEMORY_MIN_BYTES)
    return fail(found, `VMs need memory: at least ${formatBytes(MEMORY_MIN_BYTES)}`);
  return available < MEMORY_GOOD_BYTES
    ? warn(found, `the demo wants ${formatBytes(MEMORY_GOOD_BYTES)}`)
    : ok(found);
}

async function checkQemu(): Promise<Outcome> {
  const { status, missing, stdout, text } = await runTool('qemu-system-x86_64', ['--version']);
  if (missing) return fail('qemu-system-x86_64 is not installed', SETUP);
  const version = /version (\d+)\.(\S+)/.exec(stdout);
  if (status !== 0 || !version) return fail(text, SETUP);
  const found = `QEMU ${version[1] ?? ''}.${version[2] ?? ''}`;
  return Number(version[1]) >= QEMU_MAJOR_MIN
    ? ok(found)
    : fail(`${found} is too old`, `install ${QEMU_MAJOR_MIN}.2 or later`);
}

/** In a network namespace of its own, so that nothing of this machine changes. */
async function inOwnNetwork(script: string, what: string, tool: string): Promise<Outcome> {
  const { status, missing, text } = await runTool('unshare', ['--net', 'sh', '-c', script]);
  if (status === 0) return ok(`${what} work`);
  if (missing || /not found/.test(text)) return fail(`${tool} is not installed`, SETUP);
  const advice = /not permitted|denied/i.test(text) ? 'run as root' : `does this kernel have them? (${tool})`;
  return fail(text, advice);
}

const NETWORK_SCRIPT = `ip link add name sfb0 type bridge && ip link add name sfv0 type vxlan id 1 local 127.0.0.1 dstport 4789 &&
ip link set dev sfv0 master sfb0 && ip link add name sfe0 type veth peer name sfe1`;
const NFT_SCRIPT = `nft add table inet t && nft add chain inet t c '{ type filter hook forward priority 0; }' &&
nft add rule inet t c ip daddr 10.0.0.0/8 counter drop`;

function checkNode(): Outcome {
  const found = `Node ${process.versions.node}`;
  return Number(process.versions.node.split('.')[0]) >= NODE_MAJOR
    ? ok(found)
    : fail(found, `Node ${NODE_MAJOR} comes with npm run setup`);
}

export const CHECKS: readonly Check[] = [
  { name: 'node', run: async () => checkNode() },
  {
    name: 'root',
    run: async () => (process.getuid?.() === 0 ? ok('yes') : fail('no', 'the daemons and the lab need root')),
  },
  { name: 'qemu', run: checkQemu },
  { name: 'kvm', run: checkKvm },
  { name: 'fuse', run: async () => checkDevice('/dev/fuse', 'fuse') },
  { name: 'tun', run: async () => checkDevice('/dev/net/tun', 'tun') },
  {
    name: 'network',
    run: () => inOwnNetwork(NETWORK_SCRIPT, 'namespaces, bridges, VXLAN and veth', 'iproute2'),
  },
  { name: 'nftables', run: () => inOwnNetwork(NFT_SCRIPT, 'tables, chains and rules', 'nftables') },
  { name: 'multicast', run: checkMulticast },
  { name: 'huge pages', run: async () => checkHugePages() },
  { name: 'memory', run: async () => checkMemory() },
  {
    name: 'disk',
    run: async () => checkFreeDisk(process.env.SNOWFLOCK_IMAGES ?? '/var/cache/snowflock/images'),
  },
  { name: 'run disk', run: async () => checkFreeDisk(process.env.SNOWFLOCK_LAB_DIR ?? '/run/snowflock') },
];
