// How much of everything there may be: sfmd's configuration (docs/configuration.md), with its names for messages.

export interface Limits {
  readonly vmsPerCluster: number;
  readonly vmsPerHost: number;
  readonly ticketsPerCluster: number;
  readonly clusters: number;
  /** Blocked ticket requests in all; each holds a connection of its host. */
  readonly blockedRequests: number;
  /**
   * Percent of a VM's memory that its host holds free for each of its tickets: the frozen image shares all memory with
   * the running VM and keeps what that one overwrites. 100: whatever happens there is room.
   */
  readonly forkReservePercent: number;
  /** A host that has not reported for longer counts as down; hosts report every 2 s. */
  readonly hostTimeoutMs: number;
}

export const DEFAULT_LIMITS: Limits = {
  vmsPerCluster: 4096,
  vmsPerHost: 512,
  ticketsPerCluster: 1024,
  clusters: 1024,
  blockedRequests: 1024,
  forkReservePercent: 25,
  hostTimeoutMs: 8000,
};

/** What the host of a VM holds for one ticket of it. */
export function forkReserveBytes(limits: Limits, memoryMib: number): number {
  return Math.ceil((memoryMib * limits.forkReservePercent) / 100) * (1 << 20);
}
