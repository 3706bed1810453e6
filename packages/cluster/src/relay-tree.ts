// Whom each host of a fork fetches its pages from when hosts pass them on: the parent's host feeds one, and each host at most two more, so
// that a page leaves the parent's host once and any other at most twice.
//
//   parent ──▶ 0 ──▶ 1 ──▶ 3, 4        hosts in an order that the ticket decides, so that not always the same one is first
//                └─▶ 2 ──▶ 5, 6

import { createHash } from 'node:crypto';

const FED_BY_ONE = 2;

export interface RelayPlace {
  /** Host that it fetches from; null: the parent's. */
  readonly via: string | null;
  /** Hosts that fetch from it. */
  readonly feeds: readonly string[];
}

/** Null: it fetches from the parent's host, and nobody from it. A clone beside its parent costs no network, so its host has no place. */
export function relayPlace(
  host: string,
  fork: { readonly ticket: string; readonly parentHost: string; readonly targets: readonly string[] },
): RelayPlace | null {
  const { ticket, parentHost, targets } = fork;
  const rank = (name: string): string => createHash('sha256').update(`${ticket} ${name}`).digest('hex');
  const remote = [...new Set(targets)].filter((name) => name !== parentHost);
  const order = remote.map((name) => ({ name, rank: rank(name) })).sort((a, b) => (a.rank < b.rank ? -1 : 1));
  const index = order.findIndex(({ name }) => name === host);
  if (index < 0 || order.length < 2) return null;
  const via = index === 0 ? null : order[Math.floor((index - 1) / FED_BY_ONE)];
  const feeds = order.slice(index * FED_BY_ONE + 1, index * FED_BY_ONE + 1 + FED_BY_ONE);
  return { via: via?.name ?? null, feeds: feeds.map(({ name }) => name) };
}
