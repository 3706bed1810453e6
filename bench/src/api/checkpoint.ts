// A VM from a checkpoint against a clone of the running VM, in turn: each from asking for it to the first answer of its guest, on
// another host than the one that has the memory, with nothing there from the round before.

import { Lab } from '@snowflock/lab';
import { System, type Vm } from '@snowflock/sdk';
import { figure, type Figure } from '../figures.ts';
import { timed } from './timed.ts';

const SHAPE = { diskImage: 'micro', vcpus: 1, memoryMib: 128 };
/** The master VM fills the first host, so that both kinds come to the other. */
const LAB = { name: 'bench', hosts: 2, cpus: 1, ramBytes: 2 ** 30 };
const CHECKPOINT = 'bench';

export async function benchCheckpoint({
  quick,
  signal,
}: {
  quick: boolean;
  signal: AbortSignal;
}): Promise<Figure[]> {
  await using lab = await Lab.up({ ...LAB, signal });
  await using system = System.connect({ socketPath: lab.hosts[0]?.socketPath ?? '' });
  await using master = await system.seed(SHAPE);
  await answers(master);
  await system.checkpoints.create(master.name, CHECKPOINT);
  const live: number[] = [];
  const stored: number[] = [];
  const rounds = quick ? 5 : 20;
  // the first of each finds caches cold
  for (let round = -1; round < rounds; round++) {
    signal.throwIfAborted();
    const forked = await timed(async () => {
      const fork = await master.fork(1);
      await answers(system.vm(fork.clones[0]?.vm ?? ''));
      return fork;
    });
    await master.mergeClones(forked.value.ticket);
    const started = await timed(async () => {
      const vm = await system.seed({ checkpoint: CHECKPOINT });
      await answers(vm);
      return vm;
    });
    if (started.value.host === master.host) throw new Error('it came to the host of the checkpoint');
    await started.value.shutdown();
    if (round < 0) continue;
    live.push(forked.ms);
    stored.push(started.ms);
  }
  await system.checkpoints.delete(CHECKPOINT);
  return [
    figure({ name: 'remote-clone', case: 'of a running VM', unit: 'ms', samples: live }),
    figure({ name: 'remote-clone', case: 'from a checkpoint', unit: 'ms', samples: stored }),
    figure({
      ...{ name: 'remote-clone', case: 'from a checkpoint / of a running VM', unit: 'ratio' },
      samples: stored.map((ms, round) => ms / (live[round] ?? Number.NaN)),
    }),
  ];
}

async function answers(vm: Vm): Promise<void> {
  const { status } = await vm.exec(['true']);
  if (status !== 0) throw new Error(`VM ${vm.name} runs no commands`);
}
