// The fair queue of ticket requests, and what is granted to them.
//
// What `min` and `block` mean (manual section 5): a grant is between the least acceptable and what was asked for. With
// min >= 0 the least is min, with min < 0 it is everything; without `block` min < 0 takes what there is. A blocked request
// waits for its least, never for less than one. Requests wait in one queue for all clusters, first come first served: one
// that cannot be met yet holds up all behind it, and one that does not want to wait gets nothing while others wait. So no
// request starves.

import { SnowflockError, VMID_MAX, type TicketRequest } from '@snowflock/protocol';
import {
  allowedBy,
  defaultAllocator,
  type AllocationRequest,
  type Allocator,
  type HostRoom,
  type Slot,
} from './allocator.ts';
import { prepareClones, prepareSource, type Effect } from './effects.ts';
import { forkReserveBytes } from './limits.ts';
import { findAsker, lineOf, openCluster } from './lookup.ts';
import { capacityOf, vmRamBytes, vmsOf } from './state.ts';
import type { Cluster, SystemData, Ticket, Vm } from './state.ts';
import { hostRooms, hostUsage } from './views.ts';

/** Randomness that commands draw on. */
export interface Chance {
  /** In [0, 1). */
  readonly random: () => number;
  /** A fresh UUID. */
  readonly newTicket: () => string;
  /** Absent: the default one. */
  readonly allocator?: Allocator;
}

export function requestTicket(
  system: SystemData,
  ask: { clusterid: number; by?: number | undefined; requestId: string; request: TicketRequest },
  chance: Chance,
): Effect[] {
  const { clusterid, by = 0, requestId, request } = ask;
  const cluster = openCluster(system, clusterid);
  const owner = findAsker(cluster, by);
  const { nclones, min, block } = request;
  const again = Object.values(cluster.tickets).find((ticket) => ticket.requestId === requestId);
  if (again) {
    const grant = { ticket: again.ticket, allowed: again.allowed };
    return [{ type: 'granted', requestId, clusterid, grant }];
  }
  const waiting = system.queue.find((each) => each.requestId === requestId);
  if (waiting) {
    if (waiting.clusterid !== clusterid || waiting.owner !== by)
      throw new SnowflockError('bad-request', `request ${requestId} is one of another VM`);
    waiting.unclaimedSinceMs = null;
    return [];
  }
  if (min > nclones)
    throw new SnowflockError('bad-request', `min is ${min}, more than the ${nclones} asked for`);
  const { limits } = system;
  if (Object.keys(cluster.tickets).length >= limits.ticketsPerCluster)
    throw new SnowflockError(
      'no-resources',
      `cluster ${clusterid} has ${limits.ticketsPerCluster} tickets, the most that sfmd's configuration allows (tickets_per_cluster); merge or dispose some`,
    );
  if (!block && vmsLeft(system, cluster) <= 0)
    throw new SnowflockError(
      'no-resources',
      `cluster ${clusterid} has ${limits.vmsPerCluster} VMs, the most that sfmd's configuration allows (vms_per_cluster); merge some`,
    );
  if (cluster.nextVmid + nclones > VMID_MAX + 1)
    throw new SnowflockError(
      'no-resources',
      `cluster ${clusterid} has used ${cluster.nextVmid} of ${VMID_MAX + 1} vmids; start a new cluster`,
    );
  if (block) {
    const most = allowedBy(
      (chance.allocator ?? defaultAllocator)
        .allocate(emptyRooms(system, lineOf(cluster, owner)), allocation(cluster, request), () => 0)
        .slice(0, limits.vmsPerCluster - lineOf(cluster, owner).length),
      request.procs,
    );
    if (most < leastOf(request)) {
      if (min === 0) return [{ type: 'granted', requestId, clusterid, grant: { ticket: null, allowed: 0 } }];
      const what = request.procs ? 'processors' : 'clones';
      throw new SnowflockError(
        'no-resources',
        `${leastOf(request)} ${what} will never fit: beside the VM that forks, all hosts together have room for ${most}`,
      );
    }
    if (system.queue.length >= limits.blockedRequests)
      throw new SnowflockError(
        'unavailable',
        `${limits.blockedRequests} requests wait for resources already, the most that sfmd's configuration allows (blocked_requests); try again later`,
      );
    const order = (system.queue.at(-1)?.order ?? 0) + 1;
    system.queue.push({ requestId, clusterid, owner: by, request, order, unclaimedSinceMs: null });
    return [];
  }
  const slots = system.queue.length > 0 ? [] : available(system, { cluster, owner, request }, chance);
  const allowed = allowedBy(slots, request.procs);
  if (allowed === 0 || allowed < min)
    return [{ type: 'granted', requestId, clusterid, grant: { ticket: null, allowed: 0 } }];
  return grant(cluster, { owner, requestId, slots, allowed, nowMs: system.nowMs }, chance);
}

export function cancelRequest(system: SystemData, requestId: string): Effect[] {
  const index = system.queue.findIndex((waiting) => waiting.requestId === requestId);
  if (index >= 0) system.queue.splice(index, 1);
  return [];
}

/** Grants from the head of the queue until one has to wait. */
export function serveQueue(system: SystemData, chance: Chance): Effect[] {
  const effects: Effect[] = [];
  for (let head = system.queue[0]; head; head = system.queue[0]) {
    const { request, requestId } = head;
    const cluster = openCluster(system, head.clusterid);
    const owner = findAsker(cluster, head.owner);
    const slots = available(system, { cluster, owner, request }, chance);
    const allowed = allowedBy(slots, request.procs);
    if (allowed < leastOf(request)) return effects;
    system.queue.shift();
    effects.push(...grant(cluster, { owner, requestId, slots, allowed, nowMs: system.nowMs }, chance));
  }
  return effects;
}

function leastOf({ nclones, min }: TicketRequest): number {
  return min < 0 ? nclones : Math.max(min, 1);
}

function allocation(cluster: Cluster, request: TicketRequest): AllocationRequest {
  const { vcpus } = cluster.shape;
  return { count: request.nclones, procs: request.procs, vcpus, ramBytes: vmRamBytes(cluster.shape) };
}

/** What can be granted now: where there is room, beside what the owner's host has to hold for the frozen image. */
function available(
  system: SystemData,
  { cluster, owner, request }: { cluster: Cluster; owner: Vm; request: TicketRequest },
  { random, allocator = defaultAllocator }: Chance,
): Slot[] {
  const reserve = forkReserveBytes(system.limits, owner.memoryMib);
  const used = hostUsage(system).get(owner.host)?.ramBytes ?? 0;
  const host = system.hosts[owner.host];
  if (reserve > 0 && used + reserve > (host ? capacityOf(host).ramBytes : 0)) return [];
  const rooms = hostRooms(system).map((room) =>
    room.host === owner.host ? { ...room, ramFreeBytes: room.ramFreeBytes - reserve } : room,
  );
  return allocator
    .allocate(rooms, allocation(cluster, request), random)
    .slice(0, Math.max(0, vmsLeft(system, cluster)));
}

function vmsLeft(system: SystemData, cluster: Cluster): number {
  return system.limits.vmsPerCluster - vmsOf(cluster).length;
}

/** Every host as if nothing ran there but the VM that forks and those it descends from, each with the image of its fork: the most that can ever be. */
function emptyRooms(system: SystemData, line: readonly Vm[]): HostRoom[] {
  return Object.values(system.hosts).map(({ host, cpus, ramBytes }) => {
    const room = {
      host,
      clones: 0,
      cpusFree: cpus,
      vmsFree: system.limits.vmsPerHost,
      ramFreeBytes: ramBytes,
    };
    for (const vm of line) {
      if (vm.host !== host) continue;
      room.cpusFree -= vm.vcpus;
      room.vmsFree -= 1;
      if (vm.vmid !== 0) room.clones += 1;
      room.ramFreeBytes -= vmRamBytes(vm) + forkReserveBytes(system.limits, vm.memoryMib);
    }
    return room;
  });
}

interface Grant {
  readonly owner: Vm;
  readonly requestId: string;
  readonly slots: readonly Slot[];
  readonly allowed: number;
  readonly nowMs: number;
}

function grant(
  cluster: Cluster,
  { owner, requestId, slots, allowed, nowMs }: Grant,
  chance: Chance,
): Effect[] {
  const { clusterid, shape } = cluster;
  const id = chance.newTicket();
  const vmids: number[] = [];
  const byHost = new Map<string, { vmid: number; vcpus: number }[]>();
  for (const { host, vcpus } of slots) {
    const vmid = cluster.nextVmid++;
    vmids.push(vmid);
    cluster.vms[vmid] = {
      ...{ vmid, host, vcpus, memoryMib: shape.memoryMib, ticket: id },
      ...{ status: 'preparing', reason: null, unreachable: false, freed: false, missingSinceMs: null },
      ...{ left: null, ranMs: null },
    };
    byHost.set(host, [...(byHost.get(host) ?? []), { vmid, vcpus }]);
  }
  const preparing = [...byHost.keys()];
  const ticket: Ticket = {
    ...{ ticket: id, owner: owner.vmid, requestId, allowed, delivered: false, sinceMs: nowMs },
    forkedUnixMs: null,
    ...{ redemption: null, launched: false, vmids, preparing, sourcePreparing: true },
    ...{ sourceError: null, status: 'unused' },
  };
  cluster.tickets[id] = ticket;
  cluster.frozen[id] = { ticket: id, host: owner.host };
  return [
    { type: 'granted', requestId, clusterid, grant: { ticket: id, allowed } },
    prepareSource(cluster, ticket),
    ...[...byHost].map(([host, clones]) => prepareClones(cluster, { ticket, host, clones })),
  ];
}
