// npm run bench -- network: throughput and round trips between two clones, on one host and on two, as SnowFlock connects them and, in turn,
// over the same bridges and VXLAN without its rules: the guard of each tap and the filter of VXLAN. And the same without VMs, with iperf3.

import { Lab } from '@snowflock/lab';
import { ForkVmReply, parseVmRef } from '@snowflock/protocol';
import { execInVm } from '@snowflock/sdk';
import { chooseAccel } from '@snowflock/vm';
import { BenchCluster } from '../cluster.ts';
import { figure, machine, type BenchResult, type Figure } from '../figures.ts';
import { Clone } from './clone.ts';
import { benchHostPath, requireIperf } from './host-path.ts';
import { withoutRules } from './rules.ts';

const SHAPE = { diskImage: 'micro', vcpus: 1, memoryMib: 96 };
const LAB = { name: 'bench', hosts: 2, cpus: 4, ramBytes: 2 * 2 ** 30 };
/** Three over two hosts: two of them share one. */
const CLONES = 3;
const TRANSFER_MIB = 32;
const QUICK_TRANSFER_MIB = 4;
const PINGS = 50;
const BOOT_TIMEOUT_MS = 90_000;
const FORK_TIMEOUT_MS = 120_000;

interface Sample {
  readonly transferMs: number;
  readonly roundTripUs: number;
}

interface Round {
  readonly guarded: Sample;
  readonly plain: Sample;
}

export async function benchNetwork(options: { quick: boolean; signal: AbortSignal }): Promise<BenchResult> {
  const { quick, signal } = options;
  const sizeMib = quick ? QUICK_TRANSFER_MIB : TRANSFER_MIB;
  requireIperf();
  const hostPath = await benchHostPath({ quick, signal });
  await using lab = await Lab.up({ ...LAB, signal });
  await using cluster = await BenchCluster.seed(lab, SHAPE);
  const clones = await fork(lab, `${cluster.clusterid}:0`);
  const figures: Figure[] = [...hostPath];
  for (const [name, pair] of Object.entries(pairsOf(clones))) {
    const rounds: Round[] = [];
    for (let round = -1; round < (quick ? 3 : 12); round++) {
      signal.throwIfAborted();
      const guarded = await measure(pair, sizeMib);
      const plain = await withoutRules(lab, () => measure(pair, sizeMib));
      // the first translates code
      if (round >= 0) rounds.push({ guarded, plain });
    }
    figures.push(...figuresOf(name, sizeMib, rounds));
  }
  return { bench: 'network', machine: machine((await chooseAccel('auto')).chosen), figures };
}

async function fork(lab: Lab, master: string): Promise<Clone[]> {
  await execInVm(lab.client(1), master, ['true'], { waitMs: BOOT_TIMEOUT_MS });
  const { clones } = await lab.client(1).request({
    ...{ method: 'POST', path: `/v1/vms/${master}/fork`, body: { nclones: CLONES } },
    ...{ reply: ForkVmReply, timeoutMs: FORK_TIMEOUT_MS },
  });
  return clones.map(({ vm, host }) => new Clone(lab.client(1), parseVmRef(vm), host));
}

interface Pair {
  readonly from: Clone;
  readonly to: Clone;
}

function pairsOf(clones: readonly Clone[]): Record<string, Pair> {
  const all = clones.flatMap((from) => clones.filter((to) => to !== from).map((to) => ({ from, to })));
  const near = all.find(({ from, to }) => from.host === to.host);
  const far = all.find(({ from, to }) => from.host !== to.host);
  if (!near || !far) throw new Error('the clones are not on two hosts');
  return { 'one host': near, 'two hosts': far };
}

async function measure({ from, to }: Pair, sizeMib: number): Promise<Sample> {
  return {
    transferMs: await from.sends(to, sizeMib),
    roundTripUs: await from.roundTripUs(to, PINGS),
  };
}

function figuresOf(pair: string, sizeMib: number, rounds: readonly Round[]): Figure[] {
  const of = (name: string, unit: Figure['unit'], value: (sample: Sample) => number): Figure[] =>
    (['guarded', 'plain'] as const).map((kind) =>
      figure({ name, case: `${pair}, ${kind}`, unit, samples: rounds.map((round) => value(round[kind])) }),
    );
  return [
    ...of(`transfer of ${sizeMib} MiB`, 'ms', ({ transferMs }) => transferMs),
    ...of('round trip', 'us', ({ roundTripUs }) => roundTripUs),
    figure({
      ...{ name: 'throughput / plain', case: pair, unit: 'ratio' },
      samples: rounds.map(({ guarded, plain }) => plain.transferMs / guarded.transferMs),
    }),
  ];
}
