// Which of what memtaps and memservers count becomes which Prometheus counter.

import { PAGE_BYTES, PAGE_WAIT_BOUNDS_US } from '@snowflock/protocol';
import type { MemserverStats, MemtapStats } from '@snowflock/replication';

const BYTES = 'Bytes of pages that clones of this host got, by path (docs/metrics.md)';
const FAULTS = 'READs of clones that reached a memtap, by how they were answered (docs/metrics.md)';
const MULTICAST =
  'Pages that came to memtaps of this host by multicast, and those that did not (docs/metrics.md)';
const PUSHED =
  'Pages that others needed first: fetched ahead, held back to see whether they are used, and missed of those (docs/metrics.md)';
const WIRE = 'Bytes between memtaps of this host and memservers';
const SERVED = 'Pages that memservers of this host were asked for, by what they were';
const REFUSED = 'Connections to memservers of this host that were ended: too many, not proven, too slow';

/** One label at most: its name and value. */
export const FETCH_COUNTERS = [
  { figure: 'demandBytes', name: 'snowflock_fetched_bytes_total', labels: { path: 'demand' }, help: BYTES },
  {
    figure: 'prefetchBytes',
    name: 'snowflock_fetched_bytes_total',
    labels: { path: 'prefetch' },
    help: BYTES,
  },
  { figure: 'diskBytes', name: 'snowflock_fetched_bytes_total', labels: { path: 'disk' }, help: BYTES },
  { figure: 'zeroBytes', name: 'snowflock_fetched_bytes_total', labels: { path: 'zero' }, help: BYTES },
  { figure: 'fetchedReads', name: 'snowflock_faults_total', labels: { answered: 'fetched' }, help: FAULTS },
  { figure: 'cacheReads', name: 'snowflock_faults_total', labels: { answered: 'cache' }, help: FAULTS },
  { figure: 'zeroReads', name: 'snowflock_faults_total', labels: { answered: 'zero' }, help: FAULTS },
  {
    figure: 'interruptedReads',
    name: 'snowflock_faults_total',
    labels: { answered: 'interrupted' },
    help: FAULTS,
  },
  {
    figure: 'droppedPages',
    name: 'snowflock_prefetch_dropped_pages_total',
    labels: {},
    help: 'Pages that came unasked and were thrown away, because the queue to the page cache was full',
  },
  {
    figure: 'compressedPages',
    name: 'snowflock_compressed_pages_total',
    labels: {},
    help: 'Pages that came to memtaps of this host compressed, because the link was narrow',
  },
  {
    figure: 'nearPages',
    name: 'snowflock_near_pages_total',
    labels: {},
    help: 'Pages that memtaps of this host copied from those of earlier forks',
  },
  {
    figure: 'pushedPages',
    name: 'snowflock_pushed_pages_total',
    labels: { what: 'pushed' },
    help: PUSHED,
  },
  {
    figure: 'heldBackPages',
    name: 'snowflock_pushed_pages_total',
    labels: { what: 'held back' },
    help: PUSHED,
  },
  {
    figure: 'pushMissedPages',
    name: 'snowflock_pushed_pages_total',
    labels: { what: 'missed' },
    help: PUSHED,
  },
  {
    figure: 'reconnects',
    name: 'snowflock_page_link_reconnects_total',
    labels: {},
    help: 'Times that a memtap of this host had to connect to its memserver again',
  },
  {
    figure: 'wireReceived',
    name: 'snowflock_page_wire_bytes_total',
    labels: { way: 'received' },
    help: WIRE,
  },
  { figure: 'wireSent', name: 'snowflock_page_wire_bytes_total', labels: { way: 'sent' }, help: WIRE },
  {
    figure: 'awaitedPages',
    name: 'snowflock_multicast_pages_total',
    labels: { what: 'awaited' },
    help: MULTICAST,
  },
  {
    figure: 'unaskedPages',
    name: 'snowflock_multicast_pages_total',
    labels: { what: 'unasked' },
    help: MULTICAST,
  },
  {
    figure: 'missedPages',
    name: 'snowflock_multicast_pages_total',
    labels: { what: 'missed' },
    help: MULTICAST,
  },
  {
    figure: 'servedToAll',
    name: 'snowflock_multicast_served_bytes_total',
    labels: {},
    help: 'Bytes that memservers of this host sent to all hosts of a fork at once',
  },
  { figure: 'servedData', name: 'snowflock_served_pages_total', labels: { kind: 'data' }, help: SERVED },
  { figure: 'servedZero', name: 'snowflock_served_pages_total', labels: { kind: 'zero' }, help: SERVED },
  { figure: 'servedHole', name: 'snowflock_served_pages_total', labels: { kind: 'hole' }, help: SERVED },
  {
    figure: 'servedBytes',
    name: 'snowflock_served_bytes_total',
    labels: {},
    help: 'Bytes that memservers of this host sent',
  },
  {
    figure: 'relayedBytes',
    name: 'snowflock_relayed_bytes_total',
    labels: {},
    help: 'Bytes that relays of this host passed on',
  },
  {
    figure: 'servedErrors',
    name: 'snowflock_served_errors_total',
    labels: {},
    help: 'Requests that memservers of this host answered with an error',
  },
  {
    figure: 'refused',
    name: 'snowflock_page_clients_refused_total',
    labels: { why: 'limit' },
    help: REFUSED,
  },
  {
    figure: 'unproven',
    name: 'snowflock_page_clients_refused_total',
    labels: { why: 'proof' },
    help: REFUSED,
  },
  { figure: 'dropped', name: 'snowflock_page_clients_refused_total', labels: { why: 'slow' }, help: REFUSED },
] as const;

/** Of the histogram of waits: each bucket's, by its bound in microseconds, and the rest. */
export const WAIT_COUNT = 'waits';
export const WAIT_SUM_US = 'waitsUs';
export function waitsUpTo(boundUs: number): `waits up to ${number}` {
  return `waits up to ${boundUs}`;
}
const WAIT_FIGURES = [WAIT_COUNT, WAIT_SUM_US, ...PAGE_WAIT_BOUNDS_US.map(waitsUpTo)] as const;

export const FETCH_FIGURES = [...FETCH_COUNTERS.map(({ figure }) => figure), ...WAIT_FIGURES];
export type FetchFigure = (typeof FETCH_FIGURES)[number];
type Figures = Record<FetchFigure, number>;

const NONE = Object.fromEntries(FETCH_FIGURES.map((figure) => [figure, 0])) as Figures;

export function memtapFigures(stats: MemtapStats): Figures {
  const { demandBytes, prefetchedBytes, demandDiskPages, prefetchedDiskPages } = stats;
  const demandDisk = demandDiskPages * PAGE_BYTES;
  const prefetchDisk = prefetchedDiskPages * PAGE_BYTES;
  return {
    ...NONE,
    demandBytes: demandBytes - demandDisk,
    prefetchBytes: prefetchedBytes - prefetchDisk,
    diskBytes: demandDisk + prefetchDisk,
    zeroBytes: (stats.zeroPages + stats.learnedZeroPages) * PAGE_BYTES,
    fetchedReads: stats.demandReads,
    cacheReads: stats.sharedReads,
    zeroReads: stats.zeroReads,
    interruptedReads: stats.interruptedReads,
    droppedPages: stats.droppedPages,
    compressedPages: stats.compressedPages,
    nearPages: stats.nearPages,
    pushedPages: stats.push.pushedPages,
    heldBackPages: stats.push.heldBackPages,
    pushMissedPages: stats.push.missedPages,
    reconnects: stats.reconnects,
    wireReceived: stats.wireBytesReceived,
    wireSent: stats.wireBytesSent,
    awaitedPages: stats.multicast?.awaitedPages ?? 0,
    unaskedPages: stats.multicast?.unaskedPages ?? 0,
    missedPages: stats.multicast?.missedPages ?? 0,
    ...waitFigures(stats),
  };
}

function waitFigures({ missLatency: { count, sumUs, buckets } }: MemtapStats): Partial<Figures> {
  const upTo = PAGE_WAIT_BOUNDS_US.map((bound, index) => [waitsUpTo(bound), buckets[index] ?? 0] as const);
  return { ...Object.fromEntries(upTo), [WAIT_COUNT]: count, [WAIT_SUM_US]: sumUs };
}

export function memserverFigures(stats: MemserverStats): Figures {
  return {
    ...NONE,
    servedData: stats.pagesRead - stats.zeroPages,
    servedZero: stats.zeroPages,
    servedHole: stats.holePages,
    servedBytes: stats.sentBytes,
    servedErrors: stats.errors,
    servedToAll: stats.multicast?.multicastBytes ?? 0,
    refused: stats.refusedClients,
    unproven: stats.failedHandshakes,
    dropped: stats.droppedClients,
  };
}

/** A relay is a memserver, but what it sends has not left a parent's host. */
export function relayFigures(stats: MemserverStats): Figures {
  return { ...memserverFigures(stats), servedBytes: 0, relayedBytes: stats.sentBytes };
}
