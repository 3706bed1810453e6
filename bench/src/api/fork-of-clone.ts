// A fork of a clone against a fork of its master VM, in turn: from the call to the first answer of the one clone, which is on a third
// host each time. The machine has few CPUs, so the ratio of each pair says more than the times.

import { Lab } from '@snowflock/lab';
import { SystemState } from '@snowflock/protocol';
import { BenchCluster } from '../cluster.ts';
import { figure, type Figure } from '../figures.ts';
import { GuestProgram } from '../fork/guest-program.ts';
import { forkOnce, type ForkSample } from '../fork/snowflock.ts';

const SHAPE = { diskImage: 'micro', vcpus: 1, memoryMib: 128 };
/** One VM each: master VM, clone, and what is forked. */
const LAB = { name: 'bench', hosts: 3, cpus: 1, ramBytes: 2 ** 30 };
const PROGRAM = ['/usr/lib/snowflock/sffork'];
const REQUEST_TIMEOUT_MS = 120_000;

export async function benchForkOfClone({
  quick,
  signal,
}: {
  quick: boolean;
  signal: AbortSignal;
}): Promise<Figure[]> {
  await using lab = await Lab.up({ ...LAB, signal });
  await using cluster = await BenchCluster.seed(lab, SHAPE);
  await using stack = new AsyncDisposableStack();
  const { clusterid } = cluster;
  const client = lab.client(1);
  const ofMaster = stack.use(await GuestProgram.start(client, `${clusterid}:0`, PROGRAM));
  const ticket = (await ofMaster.ask('ticket 1')).split(' ')[1] ?? '';
  await ofMaster.ask(`clone ${ticket}`);
  const state = await client.request({
    ...{ method: 'GET', path: '/v1/master/state', reply: SystemState, timeoutMs: REQUEST_TIMEOUT_MS },
  });
  const clone = state.clusters[0]?.vms.find(({ vmid }) => vmid !== 0);
  const ofClone = stack.use(await GuestProgram.start(client, `${clusterid}:${clone?.vmid ?? 1}`, PROGRAM));
  const pairs: { master: ForkSample; clone: ForkSample }[] = [];
  const rounds = quick ? 3 : 12;
  // the first forks of a VM find caches cold, and have nothing learnt yet
  for (let round = -1; round < rounds; round++) {
    signal.throwIfAborted();
    const pair = { master: await forkOnce(lab, ofMaster), clone: await forkOnce(lab, ofClone) };
    if (round >= 0) pairs.push(pair);
  }
  return figuresOf(pairs);
}

function figuresOf(pairs: readonly { master: ForkSample; clone: ForkSample }[]): Figure[] {
  const answerMs = ({ fork, clone }: ForkSample): number =>
    (clone.firstAnswerAtMs ?? Number.NaN) - fork.calledAtMs;
  const of = (name: string, unit: 'ms', value: (sample: ForkSample) => number): Figure[] => [
    figure({ name, case: 'of a master VM', unit, samples: pairs.map(({ master }) => value(master)) }),
    figure({ name, case: 'of a clone', unit, samples: pairs.map(({ clone }) => value(clone)) }),
  ];
  return [
    ...of('fork-to-answer', 'ms', answerMs),
    ...of('parent-pause', 'ms', ({ fork }) => fork.pauseMs),
    figure({
      ...{ name: 'fork-to-answer', case: 'of a clone / of its master VM', unit: 'ratio' },
      samples: pairs.map(({ master, clone }) => answerMs(clone) / answerMs(master)),
    }),
  ];
}
