// Tickets after their grant: preparation, redemption, launch, and how they end.

import { SnowflockError, type LaunchReport } from '@snowflock/protocol';
import { openCleanup, type Effect } from './effects.ts';
import { findTicket, findVm, masterVmOf, openCluster, pastOf } from './lookup.ts';
import { serveQueue, type Chance } from './queue.ts';
import { clonesOf, isEnded, PAST_TICKETS_MAX } from './state.ts';
import type { Cluster, SystemData, Ticket, TicketRef } from './state.ts';

/** A host has answered its preparation, of the clones or of the source. Late answers change nothing. */
export function prepared(
  system: SystemData,
  answer: {
    clusterid: number;
    ticket: string;
    host: string;
    part: 'clones' | 'source';
    error: string | null;
  },
): Effect[] {
  const cluster = system.clusters[answer.clusterid];
  const ticket = cluster?.tickets[answer.ticket];
  if (!cluster || !ticket) return [];
  if (answer.part === 'source') {
    ticket.sourcePreparing = false;
    ticket.sourceError = answer.error;
    return [];
  }
  const index = ticket.preparing.indexOf(answer.host);
  if (index >= 0) ticket.preparing.splice(index, 1);
  if (answer.error === null) return [];
  const failed = clonesOf(cluster, ticket).filter(
    (vm) => vm.host === answer.host && vm.status === 'preparing',
  );
  for (const vm of failed)
    Object.assign(vm, { status: 'lost', reason: `host ${vm.host} could not prepare it: ${answer.error}` });
  return failed.map((vm) => ({
    type: 'vm-ended',
    clusterid: cluster.clusterid,
    vmid: vm.vmid,
    reason: vm.reason ?? '',
  }));
}

/** unused ─▶ outstanding. Refused, without a change, when nothing of it can be launched. */
export function redeem(system: SystemData, { clusterid, ticket: id }: TicketRef): Effect[] {
  const cluster = openCluster(system, clusterid);
  const ticket = findTicket(cluster, id);
  if (ticket.status === 'outstanding')
    throw new SnowflockError(
      'ticket-used',
      `ticket ${id} was used before; each works once, request a new one`,
    );
  if (ticket.sourceError !== null)
    throw new SnowflockError(
      'fork-failed',
      `the master VM's host is not ready to fork it: ${ticket.sourceError}`,
    );
  const clones = clonesOf(cluster, ticket);
  if (clones.every(isEnded))
    throw new SnowflockError(
      'fork-failed',
      `no clone of ticket ${id} can be started: ${clones[0]?.reason ?? 'unknown'}`,
    );
  ticket.status = 'outstanding';
  return [];
}

/** Which clones run. When none does, nothing is left to compute or to join: the ticket ends as if merged. */
export function launched(
  system: SystemData,
  { clusterid, ticket: id, report }: TicketRef & { readonly report: LaunchReport },
  chance: Chance,
): Effect[] {
  const cluster = openCluster(system, clusterid);
  const ticket = findTicket(cluster, id);
  if (ticket.status === 'unused')
    throw new SnowflockError('ticket-unused', `ticket ${id} was never redeemed`);
  for (const { vmid } of report.clones)
    if (!ticket.vmids.includes(vmid))
      throw new SnowflockError('no-such-vm', `ticket ${id} has no VM ${clusterid}:${vmid}`);
  const effects: Effect[] = [];
  for (const { vmid, ok, reason } of report.clones) {
    const vm = findVm(cluster, vmid);
    // A clone may have come and gone before this report.
    if (vm.status !== 'preparing') continue;
    vm.status = ok ? 'running' : 'lost';
    if (ok) continue;
    vm.reason = reason ?? 'it could not be launched';
    effects.push({ type: 'vm-ended', clusterid, vmid, reason: vm.reason });
  }
  const clones = clonesOf(cluster, ticket);
  if (clones.every((vm) => vm.status === 'lost'))
    effects.push(...endTicket(system, cluster, ticket, 'merged'), ...serveQueue(system, chance));
  return effects;
}

/** Destroys the clones of a ticket that was used. Merging again is no error: the first answer may have got lost. */
export function mergeTicket(system: SystemData, { clusterid, ticket: id }: TicketRef): Effect[] {
  const cluster = openCluster(system, clusterid);
  if (pastOf(cluster, id) === 'merged') return [];
  const ticket = findTicket(cluster, id);
  if (ticket.status === 'unused')
    throw new SnowflockError(
      'ticket-unused',
      `ticket ${id} was not used yet, so there is nothing to merge; dispose it, or clone with it`,
    );
  return endTicket(system, cluster, ticket, 'merged');
}

export function disposeTicket(system: SystemData, { clusterid, ticket: id }: TicketRef): Effect[] {
  const cluster = openCluster(system, clusterid);
  const ticket = findTicket(cluster, id);
  if (ticket.status === 'outstanding')
    throw new SnowflockError('ticket-used', `ticket ${id} was used; merge or join it instead`);
  return endTicket(system, cluster, ticket, 'disposed');
}

/** merge_master(None): every outstanding ticket is merged, every unused one disposed. */
export function mergeAll(system: SystemData, clusterid: number): Effect[] {
  const cluster = openCluster(system, clusterid);
  return Object.values(cluster.tickets).flatMap((ticket) =>
    endTicket(system, cluster, ticket, ticket.status === 'outstanding' ? 'merged' : 'disposed'),
  );
}

/** Its clones are destroyed; what they hold comes free as their hosts confirm. */
export function endTicket(
  system: SystemData,
  cluster: Cluster,
  ticket: Ticket,
  how: 'merged' | 'disposed',
): Effect[] {
  const clones = clonesOf(cluster, ticket);
  for (const vm of clones) vm.status = 'destroyed';
  delete cluster.tickets[ticket.ticket];
  cluster.past.push({ ticket: ticket.ticket, how });
  if (cluster.past.length > PAST_TICKETS_MAX) cluster.past.shift();
  const hosts = new Set([masterVmOf(cluster).host, ...clones.map((vm) => vm.host)]);
  return [...hosts].flatMap((host) =>
    openCleanup(system, { host, clusterid: cluster.clusterid, ticket: ticket.ticket }),
  );
}
