// Reset of a clone against a new clone, in turn: each from asking for it, on a host, to the reply that it runs with its identity.

import { Lab } from '@snowflock/lab';
import { System } from '@snowflock/sdk';
import { figure, type Figure } from '../figures.ts';
import { timed } from './timed.ts';

const SHAPE = { diskImage: 'micro', vcpus: 1, memoryMib: 128 };
/** One VM each: master VM, the clone that is reset, the new clone. */
const LAB = { name: 'bench', hosts: 3, cpus: 1, ramBytes: 2 ** 30 };

export async function benchReset({
  quick,
  signal,
}: {
  quick: boolean;
  signal: AbortSignal;
}): Promise<Figure[]> {
  await using lab = await Lab.up({ ...LAB, signal });
  await using system = System.connect({ socketPath: lab.hosts[0]?.socketPath ?? '' });
  await using master = await system.seed(SHAPE);
  await master.exec(['true']);
  const { clones } = await master.fork(1);
  const clone = system.vm(clones[0]?.vm ?? '');
  const resets: number[] = [];
  const forks: number[] = [];
  const rounds = quick ? 5 : 30;
  // the first of each finds caches cold
  for (let round = -1; round < rounds; round++) {
    signal.throwIfAborted();
    await clone.exec(['sh', '-c', 'echo used > /disk/used; dd if=/dev/zero of=/tmp/used bs=1M count=8']);
    const reset = await timed(() => clone.reset());
    const { status } = await clone.exec(['test', '-e', '/disk/used']);
    if (status !== 1) throw new Error('the clone was not reset');
    const fork = await timed(() => master.fork(1));
    await master.mergeClones(fork.value.ticket);
    if (round < 0) continue;
    resets.push(reset.ms);
    forks.push(fork.ms);
  }
  return [
    figure({ name: 'reset', case: 'of a clone', unit: 'ms', samples: resets }),
    figure({ name: 'reset', case: 'a new clone', unit: 'ms', samples: forks }),
    figure({
      ...{ name: 'reset', case: 'a new clone / a reset', unit: 'ratio' },
      samples: resets.map((ms, round) => (forks[round] ?? Number.NaN) / ms),
    }),
  ];
}
