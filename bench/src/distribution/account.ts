// What the product itself counts of the pages of a fork's clones: by which path each came, what was avoided, and how clones waited.

import { PAGE_BYTES, type CloneRecord } from '@snowflock/protocol';
import { memtapStatsSchema, type MemtapStats } from '@snowflock/replication';
import { figure, type Figure } from '../figures.ts';

/** For each clone, in pages; of the memtap's counters. */
const PAGES: Readonly<Record<string, (tap: MemtapStats) => number>> = {
  'on demand': ({ demandPages }) => demandPages,
  'on demand, of the disk': ({ demandDiskPages }) => demandDiskPages,
  // read-ahead, push, and what a fork's descriptor names
  'fetched ahead': ({ prefetchedPages }) => prefetchedPages,
  'fetched ahead, of the disk': ({ prefetchedDiskPages }) => prefetchedDiskPages,
  'fetched ahead and thrown away': ({ droppedPages }) => droppedPages,
  compressed: ({ compressedPages }) => compressedPages,
  'from an earlier fork': ({ nearPages }) => nearPages,
  // holes, and what was known to be zero
  avoided: ({ zeroPages }) => zeroPages,
  'turned out to be zero': ({ learnedZeroPages }) => learnedZeroPages,
  'told of': ({ push }) => push.toldPages,
  pushed: ({ push }) => push.pushedPages,
  'pushed and used, estimated': ({ push }) => push.usedPages,
  'held back': ({ push }) => push.heldBackPages,
  'held back and missed': ({ push }) => push.missedPages,
  'multicast, waited for': ({ multicast }) => multicast?.awaitedPages ?? 0,
  'multicast, not asked for': ({ multicast }) => multicast?.unaskedPages ?? 0,
  'multicast, asked for again': ({ multicast }) => multicast?.hurriedPages ?? 0,
  'multicast, lost': ({ multicast }) => multicast?.missedPages ?? 0,
};

/** For each clone, in bytes. */
const BYTES: Readonly<Record<string, (tap: MemtapStats) => number>> = {
  'by unicast': ({ wireBytesReceived }) => wireBytesReceived,
  'by multicast': ({ multicast }) => multicast?.bytes ?? 0,
  'pages on demand': ({ demandBytes }) => demandBytes,
  'pages fetched ahead': ({ prefetchedBytes }) => prefetchedBytes,
  'pages pushed': ({ push }) => push.pushedPages * PAGE_BYTES,
  'asked with': ({ wireBytesSent }) => wireBytesSent,
};

/** For each clone, READs of the kernel. */
const READS: Readonly<Record<string, (tap: MemtapStats) => number>> = {
  'had to be fetched': ({ demandReads }) => demandReads,
  'were on their way': ({ sharedReads }) => sharedReads,
  'of zero pages': ({ zeroReads }) => zeroReads,
};

/** One for each host: its clones share it, and each of their records has a copy that was taken at the same time. */
export function memtapsOf(clones: readonly CloneRecord[]): MemtapStats[] {
  const distinct = new Map(clones.map(({ replication }) => [JSON.stringify(replication), replication]));
  return [...distinct.values()].map((replication) => memtapStatsSchema.parse(replication));
}

export function memtapOf({ replication }: CloneRecord): MemtapStats {
  return memtapStatsSchema.parse(replication);
}

/** Means over the clones of a fork, one sample for each of `forks`; and of every clone, how it waited for pages. What was never counted is left out. */
export function accountOfClones(name: string, forks: readonly (readonly CloneRecord[])[]): Figure[] {
  const taps = forks.map((clones) => ({ of: memtapsOf(clones), count: clones.length }));
  const each = (
    what: string,
    unit: Figure['unit'],
    counters: Readonly<Record<string, (tap: MemtapStats) => number>>,
  ): Figure[] =>
    Object.entries(counters).map(([kind, counter]) => {
      const samples = taps.map(({ of, count }) => of.reduce((sum, tap) => sum + counter(tap), 0) / count);
      return figure({ name: `${what} of a clone: ${kind}`, case: name, unit, samples });
    });
  const waits = forks.flat().flatMap((clone) => clone.waits ?? []);
  const wait = (what: string, unit: Figure['unit'], value: (one: (typeof waits)[number]) => number): Figure =>
    figure({ name: `waits of a clone: ${what}`, case: name, unit, samples: waits.map(value) });
  return [
    ...each('pages', 'count', PAGES),
    ...each('bytes', 'bytes', BYTES),
    ...each('reads', 'count', READS),
    wait('number', 'count', ({ count }) => count),
    wait('median', 'us', ({ medianUs }) => medianUs),
    wait('99 %', 'us', ({ p99Us }) => p99Us),
    wait('in all', 'us', ({ sumUs }) => sumUs),
  ].filter(({ n, max }) => n > 0 && max > 0);
}
