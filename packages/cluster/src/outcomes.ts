// How the clones of a ticket ended, and when a wait for them has enough.
//
//   running ──all have ended──▶ over
//      └──count, deadline or budget reached──▶ enough ──the rest are ended──▶ over
//
// Whoever waits may ask again and again: nothing of a ticket is forgotten before it is merged.

import { SnowflockError, type Outcome, type WaitRequest } from '@snowflock/protocol';
import { openCleanup, type Effect } from './effects.ts';
import { endVm } from './lifecycle.ts';
import { findTicket, openCluster } from './lookup.ts';
import {
  clonesOf,
  isEnded,
  ranMs,
  unixTime,
  type Cluster,
  type SystemData,
  type TicketRef,
} from './state.ts';

export type WaitState =
  | { readonly kind: 'over' }
  /** Clones still run, and are to be ended. */
  | { readonly kind: 'enough'; readonly reason: string }
  /** Null: only the end of a clone can change it. */
  | { readonly kind: 'running'; readonly lookAgainMs: number | null };

/** Throws 'ticket-unused', or what findTicket throws when the ticket is gone. */
export function waitState(
  system: SystemData,
  { clusterid, ticket: id }: TicketRef,
  wait: WaitRequest & { readonly sinceMs: number; readonly nowMs: number },
): WaitState {
  const cluster = openCluster(system, clusterid);
  const ticket = findTicket(cluster, id);
  if (ticket.status === 'unused')
    throw new SnowflockError('ticket-unused', `ticket ${id} was not used yet, so there is nothing to join`);
  const clones = clonesOf(cluster, ticket);
  const running = clones.filter((vm) => !isEnded(vm));
  if (running.length === 0) return { kind: 'over' };
  const { count, deadlineMs, budgetMs, budgetBytes, sinceMs, nowMs } = wait;
  const left = clones.flatMap((vm) => vm.left ?? []);
  const exited = left.filter(({ how }) => how === 'exited').length;
  if (count !== null && exited >= count) return enough(`${exited} of ${clones.length} clones have exited`);
  const bytes = left.reduce((sum, { resultBytes }) => sum + resultBytes, 0);
  if (budgetBytes !== null && bytes >= budgetBytes)
    return enough(`its clones have returned ${bytes} bytes of results`);
  const deadlineLeftMs = deadlineMs === null ? null : deadlineMs - (nowMs - sinceMs);
  if (deadlineLeftMs !== null && deadlineLeftMs <= 0)
    return enough(`it has waited for ${Math.round((nowMs - sinceMs) / 100) / 10} s`);
  const now = unixTime({ ...system, nowMs });
  const together = clones.reduce((sum, vm) => sum + ranMs(cluster, vm, now), 0);
  // Every running clone uses it up.
  const budgetLeftMs = budgetMs === null ? null : (budgetMs - together) / running.length;
  if (budgetLeftMs !== null && budgetLeftMs <= 0)
    return enough(`its clones have run for ${Math.round(together / 100) / 10} s together`);
  const times = [deadlineLeftMs, budgetLeftMs].filter((each) => each !== null);
  return { kind: 'running', lookAgainMs: times.length === 0 ? null : Math.ceil(Math.min(...times)) };
}

const enough = (reason: string): WaitState => ({ kind: 'enough', reason });

/** Ends the clones of a ticket that still run; the ticket stays. */
export function endClones(
  system: SystemData,
  { clusterid, ticket: id, reason }: TicketRef & { readonly reason: string },
): Effect[] {
  const cluster = openCluster(system, clusterid);
  const effects: Effect[] = [];
  for (const vm of clonesOf(cluster, findTicket(cluster, id))) {
    if (isEnded(vm)) continue;
    const left = { how: 'ended', status: null, resultBytes: 0 } as const;
    effects.push(
      ...endVm(system, cluster, vm, { status: 'exited', reason: `ended by a join: ${reason}`, left }),
      ...openCleanup(system, { host: vm.host, clusterid, ticket: null, vmid: vm.vmid }),
    );
  }
  return effects;
}

/** Of every clone that has ended. */
export function outcomes(system: SystemData, { clusterid, ticket: id }: TicketRef): Outcome[] {
  const cluster: Cluster = openCluster(system, clusterid);
  return clonesOf(cluster, findTicket(cluster, id))
    .filter(isEnded)
    .sort((a, b) => a.vmid - b.vmid)
    .map(({ vmid, reason, left }) => ({
      ...{ vmid, how: left?.how ?? 'lost', status: left?.status ?? null },
      ...{ reason: reason ?? 'unknown', resultBytes: left?.resultBytes ?? 0 },
    }));
}
