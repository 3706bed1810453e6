// npm run bench -- scale: one call that makes 1 to 64 clones over 4 to 8 hosts of this machine: the parent's pause, and the time
// from the call to the last clone's answer.

import { Lab } from '@snowflock/lab';
import { chooseAccel } from '@snowflock/vm';
import { figure, machine, type BenchResult, type Figure } from '../figures.ts';
import { BenchMaster, type Fork } from '../fork/master.ts';

interface Case {
  readonly clones: number;
  readonly hosts: number;
}

const CASES: readonly Case[] = [
  { clones: 1, hosts: 4 },
  { clones: 8, hosts: 4 },
  { clones: 32, hosts: 8 },
  { clones: 64, hosts: 8 },
];
const MEMORY_MIB = 96;
const LAB_CPUS = 16;
const LAB_RAM_BYTES = 4 * 2 ** 30;

export async function benchScale(options: { quick: boolean; signal: AbortSignal }): Promise<BenchResult> {
  const { quick, signal } = options;
  const rounds = quick ? 2 : 8;
  const figures: Figure[] = [];
  for (const one of quick ? CASES.slice(0, 2) : CASES) {
    await using lab = await Lab.up({
      name: 'bench',
      hosts: one.hosts,
      cpus: LAB_CPUS,
      ramBytes: LAB_RAM_BYTES,
      signal,
    });
    await using master = await BenchMaster.seed(lab, { image: 'micro', memoryMib: MEMORY_MIB });
    const forks: Fork[] = [];
    // the first fork of a VM finds nothing learnt yet
    for (let round = 0; round <= rounds; round++) {
      signal.throwIfAborted();
      const fork = await master.fork(one.clones);
      if (round > 0) forks.push(fork);
      await master.merge(fork.ticket);
    }
    figures.push(...figuresOf(one, forks));
  }
  return { bench: 'scale', machine: machine((await chooseAccel('auto')).chosen), figures };
}

function figuresOf({ clones, hosts }: Case, forks: readonly Fork[]): Figure[] {
  const name = `${clones} clones, ${hosts} hosts`;
  const last = ({ record, clones: all }: Fork): number =>
    Math.max(...all.map((clone) => clone.firstAnswerAtMs ?? Number.NaN)) - record.calledAtMs;
  const ofRecord = (figureName: string, ms: (record: Fork['record']) => number): Figure =>
    figure({ name: figureName, case: name, unit: 'ms', samples: forks.map(({ record }) => ms(record)) });
  return [
    ofRecord('parent-pause', ({ pauseMs }) => pauseMs),
    ofRecord('pause-stop', ({ stopMs }) => stopMs),
    ofRecord('pause-fork', ({ forkMs }) => forkMs),
    ofRecord('pause-cont', ({ contMs }) => contMs),
    figure({ name: 'fork-to-last-answer', case: name, unit: 'ms', samples: forks.map(last) }),
  ];
}
