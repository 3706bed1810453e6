// The fair queue of ticket requests, and what is granted to them.
//
// What `min` and `block` mean (manual section 5): a grant is between the least acceptable and what was asked for. With
// min >= 0 the least is min, with min < 0 it is everything; without `block` min < 0 takes what there is. A blocked request
// waits for its least, never for less than one. Requests wait in one queue for all clusters, first come first served: one
// that cannot be met yet holds up all behind it, and one that does not want to wait gets nothing while others wait. So no
// request starves.

import { SnowflockError, type TicketRequest } from '@snowflock/protocol';
import {
  allowedBy,
  defaultAllocator,
  type AllocationRequest,
  type HostRoom,
  type Slot,
} from './allocator.ts';
import type { Effect } from './effects.ts';
import { masterVmOf, openCluster } from './lookup.ts';
import { QUEUE_MAX, TICKETS_PER_CLUSTER_MAX, VMID_MAX, vmRamBytes } from './state.ts';
import type { Cluster, SystemData } from './state.ts';
import { hostRooms } from './views.ts';

/** Randomness that commands draw on. */
export interface Chance {
  /** In [0, 1). */
  readonly random: () => number;
  /** A fresh UUID. */
  readonly newTicket: () => string;
}

export function requestTicket(
  system: SystemData,
  { clusterid, requestId, request }: { clusterid: number; requestId: string; request: TicketRequest },
  chance: Chance,
): Effect[] {
  const cluster = openCluster(system, clusterid);
  const { nclones, min, block } = request;
  if (min > nclones)
    throw new SnowflockError('bad-request', `min is ${min}, more than the ${nclones} asked for`);
  if (Object.keys(cluster.tickets).length >= TICKETS_PER_CLUSTER_MAX)
    throw new SnowflockError(
      'no-resources',
      `cluster ${clusterid} has ${TICKETS_PER_CLUSTER_MAX} tickets; merge or dispose some`,
    );
  if (cluster.nextVmid + nclones > VMID_MAX + 1)
    throw new SnowflockError(
      'no-resources',
      `cluster ${clusterid} has used ${cluster.nextVmid} of ${VMID_MAX + 1} vmids; start a new cluster`,
    );
  if (block) {
    const most = allowedBy(
      defaultAllocator.allocate(emptyRooms(system, cluster), allocation(cluster, request), () => 0),
      request.procs,
    );
    if (most < leastOf(request)) {
      if (min === 0) return [{ type: 'granted', requestId, grant: { ticket: null, allowed: 0 } }];
      const what = request.procs ? 'processors' : 'clones';
      throw new SnowflockError(
        'no-resources',
        `${leastOf(request)} ${what} will never fit: beside its master VM, all hosts together have room for ${most}`,
      );
    }
    if (system.queue.length >= QUEUE_MAX)
      throw new SnowflockError(
        'unavailable',
        `${QUEUE_MAX} requests are waiting for resources already; try again later`,
      );
    system.queue.push({ requestId, clusterid, request });
    return serveQueue(system, chance);
  }
  const slots = system.queue.length > 0 ? [] : available(system, cluster, request, chance);
  const allowed = allowedBy(slots, request.procs);
  if (allowed === 0 || allowed < min)
    return [{ type: 'granted', requestId, grant: { ticket: null, allowed: 0 } }];
  return grant(cluster, { requestId, slots, allowed }, chance);
}

export function cancelRequest(system: SystemData, requestId: string, chance: Chance): Effect[] {
  const index = system.queue.findIndex((waiting) => waiting.requestId === requestId);
  if (index < 0) return [];
  system.queue.splice(index, 1);
  return serveQueue(system, chance);
}

/** Grants from the head of the queue until one has to wait. To be called whenever something became free. */
export function serveQueue(system: SystemData, chance: Chance): Effect[] {
  const effects: Effect[] = [];
  for (let head = system.queue[0]; head; head = system.queue[0]) {
    const cluster = openCluster(system, head.clusterid);
    const slots = available(system, cluster, head.request, chance);
    const allowed = allowedBy(slots, head.request.procs);
    if (allowed < leastOf(head.request)) return effects;
    system.queue.shift();
    effects.push(...grant(cluster, { requestId: head.requestId, slots, allowed }, chance));
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

function available(system: SystemData, cluster: Cluster, request: TicketRequest, { random }: Chance): Slot[] {
  return defaultAllocator.allocate(hostRooms(system), allocation(cluster, request), random);
}

/** Every host as if nothing ran there but this cluster's master VM: the most that can ever be. */
function emptyRooms(system: SystemData, cluster: Cluster): HostRoom[] {
  const master = masterVmOf(cluster);
  return Object.values(system.hosts).map(({ host, cpus, ramBytes }) => {
    const here = host === master.host;
    return {
      ...{ host, clones: 0, cpusFree: cpus - (here ? master.vcpus : 0) },
      ramFreeBytes: ramBytes - (here ? vmRamBytes(master) : 0),
    };
  });
}

function grant(
  cluster: Cluster,
  { requestId, slots, allowed }: { requestId: string; slots: readonly Slot[]; allowed: number },
  chance: Chance,
): Effect[] {
  const { clusterid, shape } = cluster;
  const ticket = chance.newTicket();
  const vmids: number[] = [];
  const byHost = new Map<string, { vmid: number; vcpus: number }[]>();
  for (const { host, vcpus } of slots) {
    const vmid = cluster.nextVmid++;
    vmids.push(vmid);
    cluster.vms[vmid] = {
      ...{ vmid, host, vcpus, memoryMib: shape.memoryMib, ticket },
      ...{ status: 'preparing', reason: null, unreachable: false },
    };
    byHost.set(host, [...(byHost.get(host) ?? []), { vmid, vcpus }]);
  }
  const preparing = [...byHost.keys()];
  cluster.tickets[ticket] = {
    ticket,
    vmids,
    preparing,
    sourcePreparing: true,
    sourceError: null,
    status: 'unused',
  };
  return [
    { type: 'granted', requestId, grant: { ticket, allowed } },
    { type: 'prepare-source', clusterid, ticket, host: masterVmOf(cluster).host },
    ...[...byHost].map(([host, clones]): Effect => ({
      type: 'prepare-clones',
      clusterid,
      ticket,
      host,
      shape,
      diskBytes: cluster.diskBytes,
      clones,
    })),
  ];
}
