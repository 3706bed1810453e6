// What the processes of a fork cost: CPU time of memtap and memserver for each GiB that clones fault in, and memory that is theirs alone.

import { Lab } from '@snowflock/lab';
import { PAGE_BYTES } from '@snowflock/protocol';
import { figure, type Figure } from '../figures.ts';
import { BenchMaster, type MasterShape } from '../fork/master.ts';
import {
  cpuMs,
  privateBytes,
  replicationProcesses,
  type ReplicationProcess,
} from '../replication-processes.ts';
import { memtapOf } from './account.ts';

/** Read by the clone, for the CPU time. */
const DELIVERY: MasterShape = { image: 'micro', memoryMib: 384, areaMib: 256 };
const IDLE: MasterShape = { image: 'micro', memoryMib: 96 };
/** On one host: what is there once is divided among them. */
const IDLE_CLONES = [1, 16];
const QUICK_IDLE_CLONES = [1, 4];
const LAB_RAM_BYTES = 8 * 2 ** 30;
const GIB = 2 ** 30;

interface ResourcesOptions {
  readonly quick: boolean;
  readonly signal: AbortSignal;
}

export async function measureResources(options: ResourcesOptions): Promise<Figure[]> {
  return [...(await deliveryFigures(options)), ...(await memoryFigures(options))];
}

async function deliveryFigures({ quick, signal }: ResourcesOptions): Promise<Figure[]> {
  // a host has room for one VM, so that the clone is on the other one
  await using lab = await Lab.up({ name: 'bench', hosts: 2, cpus: 1, ramBytes: LAB_RAM_BYTES, signal });
  await using master = await BenchMaster.seed(lab, DELIVERY);
  const samples: Record<ReplicationProcess['kind'], number[]> = { memtap: [], memserver: [] };
  for (let round = 0; round < (quick ? 1 : 3); round++) {
    let before = new Map<number, number>();
    const { ticket, clones } = await master.fork(1, {
      prepared: async () => void (before = await cpuOfAll(lab)),
    });
    const [clone] = clones;
    if (!clone) throw new Error('the fork made no clone');
    const { demandPages, prefetchedPages } = memtapOf(clone);
    const deliveredGib = ((demandPages + prefetchedPages) * PAGE_BYTES) / GIB;
    for (const { kind, pid } of await replicationProcesses(lab))
      samples[kind].push(((await cpuMs(pid)) - (before.get(pid) ?? 0)) / deliveredGib);
    await master.merge(ticket);
  }
  return Object.entries(samples).map(([kind, values]) =>
    figure({ name: `${kind}-cpu-per-GiB`, case: '256 MiB read by one clone', unit: 'ms', samples: values }),
  );
}

async function cpuOfAll(lab: Lab): Promise<Map<number, number>> {
  const found = new Map<number, number>();
  for (const { pid } of await replicationProcesses(lab)) found.set(pid, await cpuMs(pid));
  return found;
}

/** Of a host that runs idle clones and nothing else, and of the parent's host. */
async function memoryFigures({ quick, signal }: ResourcesOptions): Promise<Figure[]> {
  const figures: Figure[] = [];
  for (const count of quick ? QUICK_IDLE_CLONES : IDLE_CLONES) {
    await using lab = await Lab.up({
      name: 'bench',
      hosts: 1,
      cpus: count + 1,
      ramBytes: LAB_RAM_BYTES,
      signal,
    });
    await using master = await BenchMaster.seed(lab, IDLE);
    const sfld = lab.daemonPid(1, 'sfld');
    if (sfld === undefined) throw new Error('sfld of the lab is gone');
    // the first fork makes sfld load what it needs for any
    await master.merge((await master.fork(1)).ticket);
    const sfldBefore = await privateBytes(sfld);
    const { ticket, clones } = await master.fork(count);
    const name = `${count} idle ${count === 1 ? 'clone' : 'clones'} on a host`;
    const of = (what: string, bytes: number): void =>
      void figures.push(figure({ name: what, case: name, unit: 'bytes', samples: [bytes] }));
    const sum: Record<ReplicationProcess['kind'], number> = { memtap: 0, memserver: 0 };
    for (const { kind, pid } of await replicationProcesses(lab)) sum[kind] += await privateBytes(pid);
    const sfldGrowth = Math.max(0, (await privateBytes(sfld)) - sfldBefore);
    of('memtap-private', sum.memtap);
    of('memserver-private', sum.memserver);
    of('sfld-growth', sfldGrowth);
    of('beyond-qemu-per-clone', (sum.memtap + sfldGrowth) / count);
    let qemuBytes = 0;
    for (const { pid } of clones) if (pid !== null) qemuBytes += await privateBytes(pid);
    of('clone-qemu-private', qemuBytes / count);
    await master.merge(ticket);
  }
  return figures;
}
