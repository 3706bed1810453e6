// Finding clusters, tickets and VMs, with the errors that callers see when they are not there.

import { SnowflockError } from '@snowflock/protocol';
import type { Cluster, Host, SystemData, Ticket, Vm } from './state.ts';

export function findHost(system: SystemData, host: string): Host {
  const found = Object.hasOwn(system.hosts, host) ? system.hosts[host] : undefined;
  if (!found)
    throw new SnowflockError(
      'bad-request',
      `host '${host}' is not in cluster_hosts of sfmd's configuration; add it there, or correct 'hostname' in its sfld.cfg`,
    );
  return found;
}

export function findCluster(system: SystemData, clusterid: number): Cluster {
  const cluster = system.clusters[clusterid];
  if (!cluster)
    throw new SnowflockError('no-such-cluster', `there is no cluster ${clusterid}; sfstate lists them`);
  return cluster;
}

/** A cluster that is not shutting down. */
export function openCluster(system: SystemData, clusterid: number): Cluster {
  const cluster = findCluster(system, clusterid);
  if (cluster.closing) throw new SnowflockError('no-such-cluster', `cluster ${clusterid} is shutting down`);
  return cluster;
}

export function pastOf(cluster: Cluster, ticket: string): 'merged' | 'disposed' | null {
  return cluster.past.find((past) => past.ticket === ticket)?.how ?? null;
}

/** A ticket in flight. A ticket of another cluster is as unknown as one that never was. */
export function findTicket(cluster: Cluster, ticket: string): Ticket {
  const found = Object.hasOwn(cluster.tickets, ticket) ? cluster.tickets[ticket] : undefined;
  if (found) return found;
  const past = pastOf(cluster, ticket);
  if (past === 'disposed')
    throw new SnowflockError('ticket-disposed', `ticket ${ticket} was disposed; request a new one`);
  if (past === 'merged')
    throw new SnowflockError('ticket-used', `ticket ${ticket} was used and merged; request a new one`);
  throw new SnowflockError(
    'no-such-ticket',
    `cluster ${cluster.clusterid} has no ticket ${ticket}; list_tickets shows those it has`,
  );
}

export function findVm(cluster: Cluster, vmid: number): Vm {
  const vm = cluster.vms[vmid];
  if (!vm)
    throw new SnowflockError('no-such-vm', `there is no VM ${cluster.clusterid}:${vmid}; sfstate lists them`);
  return vm;
}

export function masterVmOf(cluster: Cluster): Vm {
  return findVm(cluster, 0);
}
