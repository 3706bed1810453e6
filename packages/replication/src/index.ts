// Lazily replicated state: the frozen source of a fork and the page caches of its clones. The memserver and the memtap are
// processes of their own (memserver/main.ts, memtap/main.ts); a supervisor works with them through what is exported here.

export {
  memtapStatsSchema,
  type MemserverStats,
  type MemtapStats,
  type PageSource,
  type SavedPages,
} from './control/schemas.ts';
export type { LatencySummary } from './latency-histogram.ts';
export { type MulticastTry, tryMulticast } from './mcdist/probe.ts';
export type { MemtapFilesOptions } from './memserver/memtap-files.ts';
export { PresenceMap } from './presence-map.ts';
export type { ExitStatus } from './supervisor/child-process.ts';
export { cleanupMount, isMounted } from './supervisor/cleanup-mount.ts';
export type { SourceLostEvent } from './supervisor/managed-process.ts';
export {
  type CheckpointFiles,
  type FreezeOptions,
  type FreezeResult,
  type KeepOptions,
  type Learnt,
  type RelayedMemtap,
  MemserverProcess,
  type MemserverStartOptions,
} from './supervisor/memserver-process.ts';
export { type AttachOptions, MemtapProcess, type MemtapStartOptions } from './supervisor/memtap-process.ts';
