// Tickets after their grant: preparation, redemption, launch, and how they end.

import { SnowflockError, type ErrorCode, type LaunchReport } from '@snowflock/protocol';
import { openCleanup, vmEndedEffect, type Effect } from './effects.ts';
import { findAsker, findTicket, findVm, openCluster, pastOf, sourceHostOf } from './lookup.ts';
import { endMigrationOf } from './migration-end.ts';
import { clonesOf, isEnded, PAST_TICKETS_MAX, ticketsOf, unixTime } from './state.ts';
import type { Cluster, PastTicket, SystemData, Ticket, TicketAsk, TicketRef, Vm, Waiting } from './state.ts';

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
  ticket.preparing = ticket.preparing.filter((host) => host !== answer.host);
  if (answer.error === null) return [];
  const failed = clonesOf(cluster, ticket).filter(
    (vm) => vm.host === answer.host && vm.status === 'preparing',
  );
  for (const vm of failed)
    Object.assign(vm, { status: 'lost', reason: `host ${vm.host} could not prepare it: ${answer.error}` });
  return failed.map((vm) => vmEndedEffect(cluster, vm));
}

/** The grant has reached whoever asked for it. */
export function delivered(system: SystemData, { clusterid, ticket: id }: TicketRef): Effect[] {
  const ticket = system.clusters[clusterid]?.tickets[id];
  if (ticket) ticket.delivered = true;
  return [];
}

/** unused ─▶ outstanding. Refused, without a change, when nothing of it can be launched. */
export function redeem(
  system: SystemData,
  { clusterid, ticket: id, by, redemption = null }: TicketAsk & { readonly redemption?: string | null },
): Effect[] {
  const cluster = openCluster(system, clusterid);
  const ticket = findTicket(cluster, id, by);
  if (ticket.redemption !== null && ticket.redemption === redemption) return [];
  if (ticket.status === 'outstanding')
    throw new SnowflockError(
      'ticket-used',
      `ticket ${id} was used before; each works once, request a new one`,
    );
  if (ticket.sourceError !== null)
    throw new SnowflockError(
      'fork-failed',
      `the host of VM ${clusterid}:${ticket.owner} is not ready to fork it: ${ticket.sourceError}`,
    );
  const clones = clonesOf(cluster, ticket);
  if (clones.every(isEnded))
    throw new SnowflockError(
      'fork-failed',
      `no clone of ticket ${id} can be started: ${clones[0]?.reason ?? 'unknown'}`,
    );
  Object.assign(ticket, { status: 'outstanding', delivered: true, redemption });
  Object.assign(ticket, { sinceMs: system.nowMs, forkedUnixMs: unixTime(system) });
  return [{ type: 'fork-begun', clusterid, ticket: id }];
}

/** Which clones run. When none does, nothing is left to compute or to join: the ticket ends as if merged. */
export function launched(
  system: SystemData,
  { clusterid, ticket: id, report }: TicketRef & { readonly report: LaunchReport },
): Effect[] {
  const cluster = openCluster(system, clusterid);
  // Told again: the answer to the first time got lost.
  if (pastOf(cluster, id) === 'merged' && report.clones.every((clone) => !clone.ok)) return [];
  const ticket = findTicket(cluster, id);
  if (ticket.status === 'unused')
    throw new SnowflockError('ticket-unused', `ticket ${id} was never redeemed`);
  for (const { vmid } of report.clones)
    if (!ticket.vmids.includes(vmid))
      throw new SnowflockError('no-such-vm', `ticket ${id} has no VM ${clusterid}:${vmid}`);
  ticket.launched = true;
  const effects: Effect[] = [];
  for (const { vmid, ok, reason } of report.clones) {
    const vm = findVm(cluster, vmid);
    // A clone may have come and gone before this report.
    if (vm.status !== 'preparing') continue;
    vm.status = ok ? 'running' : 'lost';
    if (ok) effects.push({ type: 'clone-running', clusterid, ticket: id, vmid, host: vm.host });
    else {
      vm.reason = reason ?? 'it could not be launched';
      effects.push(vmEndedEffect(cluster, vm), ...endTicketsOf(system, cluster, vm));
    }
  }
  const clones = clonesOf(cluster, ticket);
  if (clones.every((vm) => vm.status === 'lost')) effects.push(...endTicket(system, cluster, ticket));
  return effects;
}

/** Destroys the clones of a ticket that was used. Merging again is no error: the first answer may have got lost. */
export function mergeTicket(system: SystemData, { clusterid, ticket: id, by }: TicketAsk): Effect[] {
  const cluster = openCluster(system, clusterid);
  if (pastOf(cluster, id) === 'merged') return [];
  const ticket = findTicket(cluster, id, by);
  if (ticket.status === 'unused')
    throw new SnowflockError(
      'ticket-unused',
      `ticket ${id} was not used yet, so there is nothing to merge; dispose it, or clone with it`,
    );
  return endTicket(system, cluster, ticket);
}

export function disposeTicket(system: SystemData, { clusterid, ticket: id, by }: TicketAsk): Effect[] {
  const cluster = openCluster(system, clusterid);
  const ticket = findTicket(cluster, id, by);
  if (ticket.status === 'outstanding')
    throw new SnowflockError('ticket-used', `ticket ${id} was used; merge or join it instead`);
  return endTicket(system, cluster, ticket);
}

/** merge_master(None): every outstanding ticket of a VM is merged, every unused one disposed. Nobody's: all of the cluster. */
export function mergeAll(
  system: SystemData,
  { clusterid, by = 0 }: { clusterid: number; by?: number | undefined },
): Effect[] {
  const cluster = openCluster(system, clusterid);
  return ticketsOf(cluster, findAsker(cluster, by)).flatMap((ticket) => endTicket(system, cluster, ticket));
}

/** A fork whose end nobody will ever tell: none of its clones counts. */
export function rollBack(system: SystemData, cluster: Cluster, ticket: Ticket, reason: string): Effect[] {
  const effects: Effect[] = [];
  for (const vm of clonesOf(cluster, ticket)) {
    if (isEnded(vm)) continue;
    Object.assign(vm, { status: 'lost', reason });
    effects.push(vmEndedEffect(cluster, vm));
  }
  return [...effects, ...endTicket(system, cluster, ticket)];
}

/** merged if it was used, else disposed: its clones are destroyed, and theirs before them; what they hold comes free as hosts confirm. */
function endTicket(system: SystemData, cluster: Cluster, ticket: Ticket): Effect[] {
  const clones = clonesOf(cluster, ticket);
  const effects = clones.flatMap((vm) => endTicketsOf(system, cluster, vm));
  for (const vm of clones) {
    vm.status = 'destroyed';
    effects.push(...endMigrationOf(system, cluster, vm));
  }
  const how = ticket.status === 'outstanding' ? 'merged' : 'disposed';
  // The snapshot stays where it was made, results move with their owner.
  const owner = cluster.vms[ticket.owner]?.host ?? [];
  const hosts = new Set([sourceHostOf(cluster, ticket), ...clones.map((vm) => vm.host)].concat(owner));
  delete cluster.tickets[ticket.ticket];
  const past: PastTicket = { ticket: ticket.ticket, how };
  cluster.past = [...cluster.past, past].slice(-PAST_TICKETS_MAX);
  const { clusterid } = cluster;
  return [
    ...effects,
    { type: 'ticket-ended', clusterid, ticket: ticket.ticket, how },
    ...[...hosts].flatMap((host) =>
      openCleanup(system, { host, clusterid, ticket: ticket.ticket, vmid: null }),
    ),
  ];
}

/** What a VM that has ended leaves: its clones have nobody to return to, and nothing is granted to it any more. */
export function endTicketsOf(system: SystemData, cluster: Cluster, vm: Vm): Effect[] {
  const { clusterid } = cluster;
  const isIts = (each: Waiting): boolean => each.clusterid === clusterid && each.owner === vm.vmid;
  const message = `VM ${clusterid}:${vm.vmid} has ended`;
  return [
    ...refuseRequests(system, isIts, { code: 'no-such-vm', message }),
    ...ticketsOf(cluster, vm).flatMap((ticket) => endTicket(system, cluster, ticket)),
  ];
}

/** Takes them out of the line. */
export function refuseRequests(
  system: SystemData,
  which: (waiting: Waiting) => boolean,
  because: { readonly code: ErrorCode; readonly message: string },
): Effect[] {
  return system.queue.filter(which).map(({ requestId }): Effect => {
    const index = system.queue.findIndex((each) => each.requestId === requestId);
    system.queue.splice(index, 1);
    return { type: 'refused', requestId, ...because };
  });
}
