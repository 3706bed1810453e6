// A warm server: a process in the master VM has a file in memory, and the clone is asked for all of it at once, as soon as it runs. How much
// longer that takes than on the master VM, in the clones of one fork after the other, with pages that earlier clones needed pushed and not.

import { Lab } from '@snowflock/lab';
import { figure, type Figure } from '../figures.ts';
import { BenchMaster } from '../fork/master.ts';
import { GuestProgram } from '../fork/guest-program.ts';

const SHAPE = { image: 'micro', memoryMib: 128 };
const FILE_MIB = 32;
const FILE = '/served/file';
const LAB_RAM_BYTES = 2 * 2 ** 30;
const FORKS = 6;
const QUICK_FORKS = 3;
const MASTER_ROUNDS = 5;
const WAYS = ['auto', 'never'] as const;

interface WarmOptions {
  readonly quick: boolean;
  /** 'push_pages = auto' and so on. */
  readonly wanted: (name: string) => boolean;
  readonly signal: AbortSignal;
}

export async function measureWarm({ quick, wanted, signal }: WarmOptions): Promise<Figure[]> {
  const figures: Figure[] = [];
  for (const way of WAYS) {
    const name = `push_pages = ${way}`;
    if (!wanted(name)) continue;
    const sfmdOptions = [`push_pages = '${way}'`];
    // a host has room for one VM, so that the clone is on the other one
    await using lab = await Lab.up({
      ...{ name: 'bench', hosts: 2, cpus: 1, ramBytes: LAB_RAM_BYTES },
      ...{ sfmdOptions, signal },
    });
    figures.push(...(await measureWay(lab, { name, forks: quick ? QUICK_FORKS : FORKS, signal })));
  }
  return figures;
}

async function measureWay(
  lab: Lab,
  { name, forks, signal }: { name: string; forks: number; signal: AbortSignal },
): Promise<Figure[]> {
  await using master = await BenchMaster.seed(lab, SHAPE);
  const vm = (vmid: number): string => `${master.clusterid}:${vmid}`;
  const warm: number[] = [];
  {
    await using shell = await GuestProgram.start(lab.client(1), vm(0), ['sh']);
    await shell.ask(`mkdir /served && mount -t tmpfs none /served && echo mounted`);
    const size = await shell.ask(`head -c ${FILE_MIB}m /dev/urandom >${FILE}; stat -c %s ${FILE}`);
    if (Number(size) !== FILE_MIB * 2 ** 20) throw new Error(`the master VM's file has ${size} bytes`);
    for (let round = 0; round < MASTER_ROUNDS; round++) warm.push(await serve(shell));
  }
  const ms = figure({ name: 'served', case: `${name}, warm master`, unit: 'ms', samples: warm });
  const figures = [ms];
  const first: number[] = [];
  const later: number[] = [];
  for (let fork = 0; fork < forks; fork++) {
    signal.throwIfAborted();
    const { ticket, clones } = await master.fork(1);
    const [clone] = clones;
    if (!clone) throw new Error('the fork made no clone');
    await using shell = await GuestProgram.start(lab.client(1), vm(clone.vmid), ['sh']);
    (fork === 0 ? first : later).push(await serve(shell));
    await master.merge(ticket);
  }
  for (const [which, samples] of [
    ['first clone', first],
    ['later clones', later],
  ] as const) {
    figures.push(figure({ name: 'served', case: `${name}, ${which}`, unit: 'ms', samples }));
    const ratios = samples.map((sample) => sample / ms.median);
    figures.push(
      figure({ name: 'served', case: `${name}, ${which} / warm master`, unit: 'ratio', samples: ratios }),
    );
  }
  return figures;
}

/** Time until all of the file has been read once, with a process that is started for it. */
async function serve(shell: GuestProgram): Promise<number> {
  await shell.ask('echo ready');
  const before = performance.now();
  // read(2) into a buffer: what cat does with a file touches no byte of it
  await shell.ask(`dd if=${FILE} of=/dev/null bs=64k 2>/dev/null; echo served`);
  return performance.now() - before;
}
