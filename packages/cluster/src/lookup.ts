// Finding clusters, tickets and VMs, with the errors that callers see when they are not there.

import { SnowflockError } from '@snowflock/protocol';
import { isEnded, type Cluster, type Host, type SystemData, type Ticket, type Vm } from './state.ts';

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

/** A ticket in flight, of VM `by` if given. A ticket of another cluster is as unknown as one that never was. */
export function findTicket(cluster: Cluster, ticket: string, by?: number): Ticket {
  const found = Object.hasOwn(cluster.tickets, ticket) ? cluster.tickets[ticket] : undefined;
  if (found) {
    if (by === undefined || found.owner === by) return found;
    const { clusterid } = cluster;
    throw new SnowflockError(
      'not-owner',
      `ticket ${ticket} is one of VM ${clusterid}:${found.owner}; VM ${clusterid}:${by} may only use its own`,
    );
  }
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

/** A VM that may ask for tickets and fork: it has not ended. */
export function findAsker(cluster: Cluster, vmid: number): Vm {
  const vm = findVm(cluster, vmid);
  // Of the master VM only its end counts: a host that was silent may be back, and its guest asks before it has reported.
  if (vmid !== 0 && isEnded(vm))
    throw new SnowflockError(
      'no-such-vm',
      `VM ${cluster.clusterid}:${vmid} has ended: ${vm.reason ?? vm.status}`,
    );
  return vm;
}

/** A clone that runs, and that nobody was cloned from. */
/** `by`: a VM, which may reset itself and the clones that it has forked. */
export function findResettable(cluster: Cluster, vmid: number, by?: number): Vm {
  const vm = findVm(cluster, vmid);
  const name = `VM ${cluster.clusterid}:${vmid}`;
  if (by !== undefined && by !== vmid && (vm.ticket === null || cluster.tickets[vm.ticket]?.owner !== by))
    throw new SnowflockError(
      'not-owner',
      `${name} is no clone of VM ${cluster.clusterid}:${by}, which may only reset itself and clones of its own`,
    );
  if (vm.ticket === null)
    throw new SnowflockError(
      'not-clone',
      `${name} is a master VM, which has no fork point to be reset to; make a checkpoint of it, and clone that`,
    );
  if (vm.status !== 'running')
    throw new SnowflockError('no-such-vm', `${name} is ${vm.status}, so it cannot be reset`);
  if (Object.values(cluster.migrations).some((each) => each.vmid === vmid && !each.moved))
    throw new SnowflockError('busy', `${name} is being migrated; try again when it is there`);
  const own = Object.values(cluster.tickets).filter((ticket) => ticket.owner === vmid);
  if (own.length > 0)
    throw new SnowflockError(
      'tickets-outstanding',
      `${name} has tickets of its own; merge or dispose of them first: ${own.map(({ ticket }) => ticket).join(', ')}`,
    );
  return vm;
}

/** A VM, the one that forked it, and so on up to the master VM. */
export function lineOf(cluster: Cluster, vm: Vm): Vm[] {
  const line: Vm[] = [];
  for (let each: Vm | undefined = vm; each;) {
    line.push(each);
    const ticket: Ticket | undefined = each.ticket === null ? undefined : cluster.tickets[each.ticket];
    each = ticket && cluster.vms[ticket.owner];
  }
  return line;
}

/** Where a ticket's snapshot is made and kept. */
export function sourceHostOf(cluster: Cluster, ticket: Pick<Ticket, 'ticket' | 'owner'>): string {
  return cluster.frozen[ticket.ticket]?.host ?? findVm(cluster, ticket.owner).host;
}

export function masterVmOf(cluster: Cluster): Vm {
  return findVm(cluster, 0);
}
