// What the clones of a fork touch, counted by a fork of its own in which nothing is fetched that nobody asked for: the first of its VM (so
// nothing is known of earlier ones), by unicast, with the memtaps' read-ahead off. Then every page that came was touched, and none that
// is zero came. Other forks of the same job touch the same, but for what the guest's kernel does differently each time.

import type { Lab } from '@snowflock/lab';
import { PAGE_BYTES } from '@snowflock/protocol';
import type { PresenceMap } from '@snowflock/replication';
import { BenchMaster, type MasterShape } from '../fork/master.ts';
import { replicationProcesses, withMemtap, type ReplicationProcess } from '../replication-processes.ts';

export interface Touched {
  /** Distinct non-zero pages of RAM and disk that any of the clones touched. */
  readonly unionBytes: number;
  /** The same of the clones of one host; mean over the hosts that have any. */
  readonly hostBytes: number;
}

export async function measureTouched(lab: Lab, shape: MasterShape, clones: number): Promise<Touched> {
  await using master = await BenchMaster.seed(lab, shape);
  const { ticket } = await master.fork(clones, { prepared: () => stopReadAhead(lab) });
  let union: { ram: PresenceMap; disk: PresenceMap } | undefined;
  const hosts: number[] = [];
  for (const one of await memtaps(lab)) {
    const arrived = await withMemtap(one, (memtap) => memtap.arrived());
    hosts.push((arrived.ram.count() + arrived.disk.count()) * PAGE_BYTES);
    union?.ram.union(arrived.ram);
    union?.disk.union(arrived.disk);
    union ??= arrived;
  }
  await master.merge(ticket);
  if (!union) throw new Error(`the fork into ${clones} clones had no memtap`);
  return {
    unionBytes: (union.ram.count() + union.disk.count()) * PAGE_BYTES,
    hostBytes: hosts.reduce((sum, bytes) => sum + bytes, 0) / hosts.length,
  };
}

/** Of the memtaps that there are: those of a ticket whose clones wait. */
export async function stopReadAhead(lab: Lab): Promise<void> {
  for (const one of await memtaps(lab))
    await withMemtap(one, (memtap) => memtap.set({ minWindowPages: 0, maxWindowPages: 0 }));
}

async function memtaps(lab: Lab): Promise<ReplicationProcess[]> {
  return (await replicationProcesses(lab)).filter(({ kind }) => kind === 'memtap');
}
