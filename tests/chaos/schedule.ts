// What goes wrong in one round, and when. Pure: it names hosts and ranks, never processes, so that a seed says it all.

import type { Random } from './random.ts';

export const FAULT_KINDS = [
  'kill-sfld',
  'kill-sfmd',
  'kill-memserver',
  'kill-memtap',
  'kill-vm',
  'cut-host',
  'fill-disk',
] as const;
export type FaultKind = (typeof FAULT_KINDS)[number];

export interface PlannedFault {
  readonly kind: FaultKind;
  /** After the round's forks were called for. */
  readonly afterMs: number;
  readonly host: number;
  /** Which of the processes that there are then, 0 <= x < 1. */
  readonly rank: number;
}

export interface PlannedRound {
  /** Clones that each cluster asks for. */
  readonly clones: readonly number[];
  readonly faults: readonly PlannedFault[];
  /** How long what is cut, dead or full stays so. */
  readonly healAfterMs: number;
  /** A daemon that is killed while clones are merged; null: none. */
  readonly atMerge: { readonly daemon: 'sfld' | 'sfmd'; readonly host: number } | null;
}

/** A fork is over in 200 ms to a second, and its clones fault for some seconds more. */
const FAULT_WINDOW_MS = 6_000;
/** Both shorter and longer than the 8 s after which a host counts as down and the 10 s after which a source is given up. */
const HEAL_MAX_MS = 13_000;

export function planRound(random: Random, options: { hosts: number; clusters: number }): PlannedRound {
  const { hosts, clusters } = options;
  const clones = Array.from({ length: clusters }, () => random.int(1, 4));
  const faults = Array.from({ length: random.int(1, 3) }, () => ({
    kind: random.pick(FAULT_KINDS),
    // half of them while the fork is under way
    afterMs: random.int(0, random.next() < 0.5 ? 800 : FAULT_WINDOW_MS),
    host: random.int(1, hosts),
    rank: random.next(),
  }));
  const healAfterMs = random.int(0, HEAL_MAX_MS);
  const atMerge =
    random.next() < 0.5
      ? { daemon: random.pick(['sfld', 'sfmd'] as const), host: random.int(1, hosts) }
      : null;
  return { clones, faults: faults.sort((a, b) => a.afterMs - b.afterMs), healAfterMs, atMerge };
}
