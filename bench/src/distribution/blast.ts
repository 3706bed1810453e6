// BLAST over clones, by the job of examples/blast on a VM of 1 GiB with the database warm in its memory:
//
//   state   bytes that leave the parent for 2 and 4 clones, each alone on a host, until each has searched its share, divided by the clones;
//           against what one copy of the same VM takes when it is suspended, copied and resumed, or migrated by QEMU's pre-copy
//   ideal   time of a search in 2 clones, each pinned to a core, from the call that forks on; against the same two clones searching
//           again, when nothing has to be made or fetched

import { execFile } from 'node:child_process';
import { mkdtemp, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { buildImage } from '@snowflock/image';
import { Lab, type LabNetworkMode } from '@snowflock/lab';
import { PAGE_BYTES, type CloneRecord } from '@snowflock/protocol';
import type { Accel } from '@snowflock/vm';
import { figure, type Figure } from '../figures.ts';
import { liveMigration } from '../fork/live-migration.ts';
import { fill, runIn, type PeerGuest, type PeerVm } from '../fork/peer-vm.ts';
import { suspendCopyResume, type CopySample } from '../fork/peers.ts';
import { cpuMs } from '../replication-processes.ts';
import { accountOfClones } from './account.ts';
import { BlastJob, IMAGE, warming, type BlastRound, type BlastShape } from './blast-job.ts';
import { ratioOf } from './ratios.ts';
import { cableBytes, servedBytes } from './sent-bytes.ts';
import { stopReadAhead } from './touched.ts';

const run = promisify(execFile);
const MEMORY_MIB = 1024;
const LAB_RAM_BYTES = 4 * 2 ** 30;
const FORK_SHIM = join(import.meta.dirname, '../../../build/native/forkshim.so');
/** Files of the peers are in memory: no disk stands in their way. */
const SCRATCH_PARENT = '/dev/shm';

/** Each clone's share takes a few seconds: what is touched are database and programs, hardly more for more queries. */
const STATE_QUERIES = 24;
/** Ways to the clones. */
const WAYS: readonly Way[] = [
  { name: '2 clones, unicast', clones: 2, networkMode: 'unicast' },
  {
    name: '2 clones, unicast without avoidance',
    clones: 2,
    networkMode: 'unicast',
    freePageReporting: false,
  },
  { name: '2 clones, only what is asked for', clones: 2, networkMode: 'unicast', onlyAsked: true },
  { name: '4 clones, unicast', clones: 4, networkMode: 'unicast' },
  { name: '4 clones, relay', clones: 4, networkMode: 'relay' },
];
const QUICK_WAYS = WAYS.slice(0, 1);
const PEERS = ['suspend-copy-resume', 'pre-copy'] as const;
/** How much of the VM is in use: what the job itself needs; and most of it, as in a VM that has run for long. */
const STATES = [
  { name: 'only the job in use', filledMib: undefined },
  { name: '640 MiB more in use', filledMib: 640 },
] as const;

/** A round of 40 to 120 s under emulation. */
const IDEAL_QUERIES = 240;
const QUICK_IDEAL_QUERIES = 24;
const IDEAL_FORKS = 3;
const IDEAL_ROUNDS = 2;
/** One for each clone. */
const CORES = [0, 1];

interface Way {
  readonly name: string;
  readonly clones: number;
  readonly networkMode: LabNetworkMode;
  readonly freePageReporting?: false;
  /** No read-ahead, no push: what there is to be won by guessing better. */
  readonly onlyAsked?: boolean;
}

interface BlastOptions {
  readonly quick: boolean;
  readonly accel: Accel;
  /** 'state/STATE/WAY', 'state/STATE/PEER', and 'ideal'. */
  readonly wanted: (name: string) => boolean;
  readonly signal: AbortSignal;
}

export async function measureBlast({ quick, accel, wanted, signal }: BlastOptions): Promise<Figure[]> {
  const figures: Figure[] = [];
  for (const state of quick ? STATES.slice(0, 1) : STATES) {
    const part = ({ name }: { name: string }): boolean => wanted(`state/${state.name}/${name}`);
    const shape = { memoryMib: MEMORY_MIB, queries: STATE_QUERIES, filledMib: state.filledMib };
    for (const way of (quick ? QUICK_WAYS : WAYS).filter(part))
      figures.push(...(await oursSent(way, shape, { state: state.name, signal })));
    const peers = PEERS.filter((name) => part({ name }));
    figures.push(...(await peersSent(shape, peers, { state: state.name, accel, signal })));
    figures.push(...ratios(figures, state.name));
  }
  if (wanted('ideal')) figures.push(...(await againstIdeal(quick, signal)));
  return figures;
}

/** Of the first fork of a VM, of whose needs nothing is known yet. */
async function oursSent(
  { name: way, clones: count, networkMode, freePageReporting, onlyAsked = false }: Way,
  shape: BlastShape,
  { state, signal }: { state: string; signal: AbortSignal },
): Promise<Figure[]> {
  signal.throwIfAborted();
  // a host has room for one VM, so that none of the clones is on the parent's
  await using lab = await Lab.up({
    ...{ name: 'bench', hosts: count + 1, cpus: 1, ramBytes: LAB_RAM_BYTES, networkMode, signal },
    sfmdOptions: onlyAsked ? ["push_pages = 'never'"] : undefined,
  });
  await using job = await BlastJob.seed(lab, { ...shape, freePageReporting });
  const cableBefore = await cableBytes(lab, job.host);
  const { ticket } = await job.ticket(count);
  if (onlyAsked) await stopReadAhead(lab);
  await job.fork(ticket);
  const { fork, clones } = await job.records(ticket);
  const served = await servedBytes(lab, job.host, ticket);
  const cable = (await cableBytes(lab, job.host)) - cableBefore;
  await job.end();
  const name = caseName(`snowflock, ${way}`, state);
  const bytes = (what: string, value: number): Figure =>
    figure({ name: what, case: name, unit: 'bytes', samples: [value] });
  return [
    bytes('blast-snapshot', fork.presentPages * PAGE_BYTES),
    bytes('blast-bytes-leaving-parent', served),
    bytes('blast-bytes-on-cable', cable),
    bytes('blast-state-sent', cable / count),
    ...accountOfClones(`blast, ${name}`, [clones]),
  ];
}

/** The same VM, warmed by the same commands; bytes of one copy. */
async function peersSent(
  shape: BlastShape,
  peers: readonly (typeof PEERS)[number][],
  { state, accel, signal }: { state: string; accel: Accel; signal: AbortSignal },
): Promise<Figure[]> {
  if (peers.length === 0) return [];
  const image = await buildImage(IMAGE, { signal });
  const commands = await warming(shape);
  const warm = async (vm: PeerVm): Promise<void> => {
    if (shape.filledMib !== undefined) await fill(vm, shape.filledMib);
    for (const argv of commands) await runIn(vm, argv);
  };
  const scratch = await mkdtemp(join(SCRATCH_PARENT, 'sf-bench-'));
  const guest: PeerGuest = { accel, image, forkShim: FORK_SHIM, memoryMib: MEMORY_MIB, warm, scratch };
  const measures: Readonly<Record<(typeof PEERS)[number], () => Promise<CopySample[]>>> = {
    'suspend-copy-resume': () => suspendCopyResume(guest, 1),
    'pre-copy': () => liveMigration(guest, { kind: 'pre-copy', rounds: 1 }),
  };
  const figures: Figure[] = [];
  try {
    for (const peer of peers) {
      signal.throwIfAborted();
      const samples = (await measures[peer]()).map(({ bytes }) => bytes);
      const name = caseName(peer, state);
      figures.push(figure({ name: 'blast-state-sent', case: name, unit: 'bytes', samples }));
    }
  } finally {
    await rm(scratch, { recursive: true, force: true });
  }
  return figures;
}

/** Each peer's one copy against one of ours. */
function ratios(figures: readonly Figure[], state: string): Figure[] {
  const found = PEERS.flatMap((peer) =>
    WAYS.map(({ name }) =>
      ratioOf(
        ...([
          figures,
          'blast-state-sent',
          caseName(peer, state),
          caseName(`snowflock, ${name}`, state),
        ] as const),
      ),
    ),
  );
  return found.filter((one) => one !== undefined);
}

async function againstIdeal(quick: boolean, signal: AbortSignal): Promise<Figure[]> {
  // a host has room for one VM, so that each clone is on one of its own
  const hosts = CORES.length + 1;
  await using lab = await Lab.up({ name: 'bench', hosts, cpus: 1, ramBytes: LAB_RAM_BYTES, signal });
  const queries = quick ? QUICK_IDEAL_QUERIES : IDEAL_QUERIES;
  await using job = await BlastJob.seed(lab, { memoryMib: MEMORY_MIB, queries });
  const forked: Timed[] = [];
  const ideal: Timed[] = [];
  const excess: number[] = [];
  const ratio: number[] = [];
  for (let fork = 0; fork < (quick ? 1 : IDEAL_FORKS); fork++) {
    signal.throwIfAborted();
    const { ticket, clones } = await job.ticket(CORES.length);
    const pids = clones.map(pidOf);
    for (const [index, pid] of pids.entries()) await pin(pid, CORES[index] ?? 0);
    const first = await timed(pids, () => job.fork(ticket));
    const again: Timed[] = [];
    for (let round = 0; round < IDEAL_ROUNDS; round++) again.push(await timed(pids, () => job.again()));
    await job.end();
    const mean = again.reduce((sum, { ms }) => sum + ms, 0) / again.length;
    forked.push(first);
    ideal.push(...again);
    excess.push(first.ms - mean);
    ratio.push(first.ms / mean);
  }
  const of = (name: string, kind: string, unit: Figure['unit'], samples: readonly number[]): Figure =>
    figure({ name, case: `${CORES.length} clones, ${kind}`, unit, samples });
  const figures = (
    [
      ['from the fork on', forked],
      ['ideal: again in the same', ideal],
    ] as const
  ).flatMap(([kind, rounds]) => [
    of(
      ...(['blast-search', kind, 'ms'] as const),
      rounds.map(({ ms }) => ms),
    ),
    of(
      ...(['blast-cpu', kind, 'ms'] as const),
      rounds.map(({ cpu }) => cpu),
    ),
  ]);
  return [
    ...figures,
    of('blast-search', 'from the fork on / ideal', 'ratio', ratio),
    // it comes once, however long the job
    of('blast-excess', 'from the fork on', 'ms', excess),
  ];
}

interface Timed {
  readonly ms: number;
  /** That the clones' QEMUs had meanwhile, in all; of a first round, without what they had before their fork. */
  readonly cpu: number;
}

async function timed(pids: readonly number[], round: () => Promise<BlastRound>): Promise<Timed> {
  const cpuOfAll = async (): Promise<number> =>
    (await Promise.all(pids.map(cpuMs))).reduce((sum, ms) => sum + ms, 0);
  const before = await cpuOfAll();
  const { ms } = await round();
  return { ms, cpu: (await cpuOfAll()) - before };
}

function pidOf({ vmid, pid }: CloneRecord): number {
  if (pid === null) throw new Error(`clone ${vmid} waits for its fork without a process`);
  return pid;
}

/** All threads of a clone's QEMU, and so those that they will start. */
async function pin(pid: number, core: number): Promise<void> {
  await run('taskset', ['--all-tasks', '--cpu-list', '--pid', String(core), String(pid)]);
}

function caseName(what: string, state: string): string {
  return `${what}, ${state}`;
}
