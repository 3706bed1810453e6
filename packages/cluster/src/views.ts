// The state as others see it: room for the allocator, answers for the control API.

import {
  guestIp,
  type HostReportReply,
  type Placement,
  type RedeemReply,
  type SystemState,
  type TicketInfo,
  type TicketList,
} from '@snowflock/protocol';
import type { HostRoom } from './allocator.ts';
import { forkReserveBytes } from './limits.ts';
import { findCluster, findTicket } from './lookup.ts';
import {
  capacityOf,
  clonesOf,
  isEnded,
  vmRamBytes,
  vmsOf,
  type Migration,
  type SystemData,
  type TicketAsk,
  type TicketRef,
  type Vm,
} from './state.ts';

export interface HostUsage {
  cpus: number;
  ramBytes: number;
  /** VMs that hold resources; a clone that is gone for sure holds none. */
  vms: number;
  /** Those among them that are clones and not ended. */
  clones: number;
}

/** What every VM holds, by host, and what is held for frozen images. A VM holds its share until its host has confirmed its end. */
export function hostUsage(system: SystemData): Map<string, HostUsage> {
  const usage = new Map<string, HostUsage>();
  for (const host of Object.keys(system.hosts)) usage.set(host, { cpus: 0, ramBytes: 0, vms: 0, clones: 0 });
  for (const cluster of Object.values(system.clusters)) {
    const reserve = forkReserveBytes(system.limits, cluster.shape.memoryMib);
    for (const { host } of Object.values(cluster.frozen)) {
      const used = usage.get(host);
      if (used) used.ramBytes += reserve;
    }
    for (const migration of Object.values(cluster.migrations))
      for (const host of migration.held) addMigration(usage.get(host), { host, migration, reserve });
    for (const vm of vmsOf(cluster)) {
      const host = usage.get(vm.host);
      if (!host || vm.freed) continue;
      host.cpus += vm.vcpus;
      host.ramBytes += vmRamBytes(vm);
      host.vms += 1;
      if (vm.vmid !== 0 && !isEnded(vm)) host.clones += 1;
    }
  }
  // As a fork's frozen image, until it is on the disk.
  for (const { host, status, shape } of Object.values(system.checkpoints)) {
    const holder = usage.get(host);
    if (holder && status === 'writing') holder.ramBytes += forkReserveBytes(system.limits, shape.memoryMib);
  }
  return usage;
}

/** All that it needs where it goes; where it comes from a frozen image, that is all there is of it when it has gone. */
function addMigration(
  used: HostUsage | undefined,
  { host, migration, reserve }: { host: string; migration: Migration; reserve: number },
): void {
  if (!used) return;
  if (host === migration.from) used.ramBytes += migration.moved ? vmRamBytes(migration) : reserve;
  else {
    used.ramBytes += vmRamBytes(migration);
    used.cpus += migration.vcpus;
    used.vms += 1;
  }
}

/** What is free on the hosts that are up. */
export function hostRooms(system: SystemData): HostRoom[] {
  const usage = hostUsage(system);
  return Object.values(system.hosts).flatMap((each) => {
    const { host, up } = each;
    const { cpus, ramBytes } = capacityOf(each);
    const used = usage.get(host);
    if (!up || !used) return [];
    return [
      {
        ...{ host, cpusFree: cpus - used.cpus, ramFreeBytes: ramBytes - used.ramBytes, clones: used.clones },
        vmsFree: system.limits.vmsPerHost - used.vms,
      },
    ];
  });
}

/** Hosts that have reported themselves at least once, for the overlay network. */
export function knownHosts(system: SystemData): HostReportReply['hosts'] {
  return Object.values(system.hosts).flatMap(({ host, address, up }) =>
    address === null ? [] : [{ host, address, up }],
  );
}

/** Of a cluster, or of one VM. */
export function ticketList(
  system: SystemData,
  { clusterid, by }: { clusterid: number; by?: number | undefined },
): TicketList {
  const all = Object.values(findCluster(system, clusterid).tickets);
  const tickets = by === undefined ? all : all.filter((ticket) => ticket.owner === by);
  const those = (status: string): string[] =>
    tickets.flatMap((each) => (each.status === status ? [each.ticket] : []));
  return { unused: those('unused'), outstanding: those('outstanding') };
}

/** For its owner, its clones, and operators. */
export function ticketInfo(system: SystemData, { clusterid, ticket: id, by }: TicketAsk): TicketInfo {
  const cluster = findCluster(system, clusterid);
  const isItsClone = by !== undefined && cluster.vms[by]?.ticket === id;
  const ticket = findTicket(cluster, id, isItsClone ? undefined : by);
  return {
    ticket: ticket.ticket,
    clones: clonesOf(cluster, ticket).map(({ vmid, vcpus }) => ({ vmid, processors: vcpus })),
  };
}

/** What the owner's host needs to launch a redeemed ticket; clones that cannot be launched, with the reason. */
export function redemption(system: SystemData, where: TicketRef): RedeemReply {
  const cluster = findCluster(system, where.clusterid);
  const all = clonesOf(cluster, findTicket(cluster, where.ticket));
  const clones = all.filter((vm) => !isEnded(vm)).map((vm) => placement(system, vm));
  const failed = all.filter(isEnded).map(({ vmid, reason }) => ({ vmid, reason: reason ?? 'unknown' }));
  return { clones, failed };
}

function placement(system: SystemData, { vmid, vcpus, host: name }: Vm): Placement {
  const host = system.hosts[name];
  return { vmid, vcpus, host: name, address: host?.address ?? name, sfldPort: host?.sfldPort ?? 0 };
}

/** Whether every preparation of a ticket has been answered, or the ticket is gone. */
export function isPrepared(system: SystemData, { clusterid, ticket }: TicketRef): boolean {
  const found = system.clusters[clusterid]?.tickets[ticket];
  return !found || (!found.sourcePreparing && found.preparing.length === 0);
}

/** Whether no clone of a ticket computes any more, or the ticket is gone. */
export function isJoinable(system: SystemData, { clusterid, ticket }: TicketRef): boolean {
  const cluster = system.clusters[clusterid];
  const found = cluster?.tickets[ticket];
  return !cluster || !found || clonesOf(cluster, found).every(isEnded);
}

/** Everything, for sfstate. */
export function systemState(system: SystemData): SystemState {
  const usage = hostUsage(system);
  return {
    hosts: Object.values(system.hosts).map((each) => {
      const { host, address, sfldPort, up, accel } = each;
      const { cpus, ramBytes } = capacityOf(each);
      const used = usage.get(host) ?? { cpus: 0, ramBytes: 0, vms: 0 };
      return {
        ...{ host, address, sfldPort, up, accel, cpus, cpusFree: cpus - used.cpus },
        ...{ ramBytes, ramFreeBytes: ramBytes - used.ramBytes, vms: used.vms },
      };
    }),
    clusters: Object.values(system.clusters).map((cluster) => ({
      clusterid: cluster.clusterid,
      shape: cluster.shape,
      vms: vmsOf(cluster).map((vm) => ({
        ...{ vmid: vm.vmid, status: vm.status, host: vm.host, vcpus: vm.vcpus, memoryMib: vm.memoryMib },
        ...{ ip: guestIp(vm.vmid), ticket: vm.ticket, reason: vm.reason },
      })),
      tickets: Object.values(cluster.tickets).map((ticket) => ({
        ticket: ticket.ticket,
        owner: ticket.owner,
        status: ticket.status,
        clones: clonesOf(cluster, ticket).map(({ vmid, vcpus, host }) => ({ vmid, processors: vcpus, host })),
      })),
    })),
  };
}
