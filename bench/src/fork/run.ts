// npm run bench -- fork: the parent's pause, the time to a clone's first instruction and first answer, faults, bytes;
// beside them, in the same run and on the same guest, what one did before.

import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { buildImage } from '@snowflock/image';
import { Lab } from '@snowflock/lab';
import { PAGE_BYTES } from '@snowflock/protocol';
import { memtapStatsSchema } from '@snowflock/replication';
import { chooseAccel, type Accel } from '@snowflock/vm';
import { figure, machine, type BenchResult, type Figure } from '../figures.ts';
import { measureFaults, type FaultLatency } from './faults.ts';
import { fill, type PeerGuest, type PeerVm } from './peer-vm.ts';
import { coldBootMs, suspendCopyResume } from './peers.ts';
import { templateClones } from './template-clone.ts';
import { measureForks, type ForkSample } from './snowflock.ts';

interface Case {
  readonly name: string;
  readonly touchedMib: number;
  /** Touched memory, and what the guest itself needs. */
  readonly memoryMib: number;
}

const CASES: readonly Case[] = [
  { name: '256MiB', touchedMib: 256, memoryMib: 384 },
  { name: '1GiB', touchedMib: 1024, memoryMib: 1280 },
  { name: '3.5GiB', touchedMib: 3584, memoryMib: 4096 },
];
const FORK_SHIM = join(import.meta.dirname, '../../../build/native/forkshim.so');
const LAB_RAM_BYTES = 18 * 2 ** 30;
const MEMORY_FILE_SYSTEM = '/dev/shm';

interface Rounds {
  readonly forks: number;
  readonly gaps: number;
  readonly boots: number;
  readonly suspends: number;
  readonly templates: number;
  readonly faultPages: number;
}

const FULL: Rounds = { forks: 20, gaps: 10, boots: 3, suspends: 5, templates: 10, faultPages: 16384 };
const QUICK: Rounds = { forks: 5, gaps: 2, boots: 1, suspends: 1, templates: 2, faultPages: 4096 };

export async function benchFork(options: { quick: boolean; signal: AbortSignal }): Promise<BenchResult> {
  const { quick, signal } = options;
  const rounds = quick ? QUICK : FULL;
  const image = await buildImage('micro', { signal });
  const accel = (await chooseAccel('auto')).chosen;
  const figures: Figure[] = [];
  for (const one of quick ? CASES.slice(0, 1) : CASES) {
    {
      await using lab = await Lab.up({ name: 'bench', hosts: 2, cpus: 8, ramBytes: LAB_RAM_BYTES, signal });
      figures.push(...(await forkFigures(lab, one, rounds)));
      if (one === CASES[0]) figures.push(...faultFigures(one, await measureFaults(lab, rounds.faultPages)));
    }
    signal.throwIfAborted();
    const warm = (vm: PeerVm): Promise<void> => fill(vm, one.touchedMib);
    const guest = { accel, image, forkShim: FORK_SHIM, memoryMib: one.memoryMib, warm };
    figures.push(...(await peerFigures(one, guest, rounds)));
    signal.throwIfAborted();
  }
  return { bench: 'fork', machine: machine(accel), figures: [...figures, ...ratios(figures)] };
}

async function forkFigures(lab: Lab, one: Case, rounds: Rounds): Promise<Figure[]> {
  const { samples, gapsUs } = await measureForks(lab, {
    image: 'micro',
    memoryMib: one.memoryMib,
    touchedMib: one.touchedMib,
    rounds: rounds.forks,
    gapRounds: rounds.gaps,
  });
  const ms = (name: string, of: (sample: ForkSample) => number): Figure =>
    figure({ name, case: one.name, unit: 'ms', samples: samples.map(of) });
  const bytes = (name: string, of: (sample: ForkSample) => number): Figure =>
    figure({ name, case: one.name, unit: 'bytes', samples: samples.map(of) });
  return [
    ms('parent-pause', ({ fork }) => fork.pauseMs),
    figure({ name: 'guest-gap', case: one.name, unit: 'ms', samples: gapsUs.map((us) => us / 1000) }),
    ms('fork-to-first-instruction', ({ fork, clone }) => (clone.runningAtMs ?? Number.NaN) - fork.calledAtMs),
    ms('fork-to-answer', ({ fork, clone }) => (clone.firstAnswerAtMs ?? Number.NaN) - fork.calledAtMs),
    bytes('descriptor', ({ fork }) => fork.descriptorBytes),
    // the clone is alone on its host, so all that its memtap received was for it; what is pushed begins to come when it has answered
    bytes('fetched-to-answer', ({ clone: { replication } }) => {
      const { wireBytesReceived, push } = memtapStatsSchema.parse(replication);
      return wireBytesReceived - push.pushedPages * PAGE_BYTES;
    }),
  ];
}

function faultFigures(one: Case, faults: { remote: FaultLatency; local: FaultLatency }): Figure[] {
  return (['local', 'remote'] as const).map((side) => {
    const { pages, minUs, medianUs, p99Us, maxUs } = faults[side];
    return {
      name: `fault-${side}`,
      case: one.name,
      unit: 'us',
      n: pages,
      min: minUs,
      median: medianUs,
      p99: p99Us,
      max: maxUs,
    };
  });
}

async function peerFigures(
  one: Case,
  guest: Omit<PeerGuest, 'scratch'> & { accel: Accel },
  rounds: Rounds,
): Promise<Figure[]> {
  const scratch = await mkdtemp(join(MEMORY_FILE_SYSTEM, 'sf-bench-')).catch(() =>
    mkdtemp(join(tmpdir(), 'sf-bench-')),
  );
  const of = (name: string, samples: number[]): Figure =>
    figure({ name, case: one.name, unit: 'ms', samples });
  try {
    const peer = { ...guest, scratch };
    const boots: number[] = [];
    for (let round = 0; round < rounds.boots; round++) boots.push(await coldBootMs(peer));
    return [
      of('cold-boot', boots),
      of(
        'suspend-copy-resume',
        (await suspendCopyResume(peer, rounds.suspends)).map(({ ms }) => ms),
      ),
      of(
        'template-clone',
        (await templateClones(peer, { source: 'same-host', rounds: rounds.templates })).map(({ ms }) => ms),
      ),
    ];
  } finally {
    await rm(scratch, { recursive: true, force: true });
  }
}

/** Each peer's median over our median of the same case. */
function ratios(figures: readonly Figure[]): Figure[] {
  const found: Figure[] = [];
  for (const peer of figures.filter((f) =>
    ['cold-boot', 'suspend-copy-resume', 'template-clone'].includes(f.name),
  )) {
    const ours = figures.find((f) => f.name === 'fork-to-answer' && f.case === peer.case);
    if (!ours) continue;
    const value = peer.median / ours.median;
    found.push(
      figure({ name: `${peer.name}/fork-to-answer`, case: peer.case, unit: 'ratio', samples: [value] }),
    );
  }
  return found;
}
