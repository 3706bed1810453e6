// Clusters and their VMs: seeding, ends, shutdown, and what hosts confirm to have cleaned up.

import { SnowflockError, type VmEnded, type VmShape } from '@snowflock/protocol';
import { defaultAllocator, type HostRoom } from './allocator.ts';
import { seedableCheckpoint } from './checkpoints.ts';
import { openCleanup, type Effect } from './effects.ts';
import { findCluster, findVm, masterVmOf, openCluster } from './lookup.ts';
import { CLUSTERID_MAX, isEnded, ranMs, unixTime, vmRamBytes, vmsOf } from './state.ts';
import type { CheckpointUse, Cleanup, Cluster, Left, SystemData, Vm } from './state.ts';
import type { Chance } from './queue.ts';
import { endMigrationOf, migrationCleaned } from './migration-end.ts';
import { endTicketsOf, refuseRequests } from './tickets.ts';
import { hostRooms } from './views.ts';

// ---- clusters -----------------------------------------------------------------------------------------------------

/** A new cluster with its master VM on the least loaded host that has room. Its id is in the effect. */
export function seed(system: SystemData, shape: VmShape, chance: Chance): Effect[] {
  return seedOn(system, { shape, rooms: hostRooms(system), from: null }, chance);
}

/** The same, of a checkpoint: on a host that can go on with what was computed on that kind of processor. */
export function seedCheckpoint(
  system: SystemData,
  { name, ticket }: { name: string; ticket: string },
  chance: Chance,
): Effect[] {
  const { id, host, shape, accel, diskBytes } = seedableCheckpoint(system, name);
  const rooms = hostRooms(system).filter((room) => system.hosts[room.host]?.accel === accel);
  return seedOn(system, { shape, rooms, from: { name, id, host, ticket, diskBytes } }, chance);
}

function seedOn(
  system: SystemData,
  options: {
    shape: VmShape;
    rooms: readonly HostRoom[];
    from: (CheckpointUse & { readonly diskBytes: number }) | null;
  },
  { random, allocator = defaultAllocator }: Chance,
): Effect[] {
  const { shape, rooms, from } = options;
  const request = { count: 1, procs: false, vcpus: shape.vcpus, ramBytes: vmRamBytes(shape) };
  const { clusters: most } = system.limits;
  if (Object.keys(system.clusters).length >= most)
    throw new SnowflockError(
      'no-resources',
      `there are ${most} clusters, as many as sfmd's configuration allows (max_clusters); shut one down`,
    );
  const slot = allocator.allocate(rooms, request, random)[0];
  if (!slot) throw new SnowflockError('no-resources', noRoomFor(system, shape));
  if (system.nextClusterid > CLUSTERID_MAX)
    throw new SnowflockError('no-resources', `all clusterids up to ${CLUSTERID_MAX} have been used`);
  const clusterid = system.nextClusterid++;
  const vm: Vm = {
    ...{ vmid: 0, host: slot.host, vcpus: shape.vcpus, memoryMib: shape.memoryMib, ticket: null },
    ...{ status: 'preparing', reason: null, unreachable: false, freed: false, missingSinceMs: null },
    ...{ left: null, ranMs: null },
  };
  system.clusters[clusterid] = {
    clusterid,
    shape,
    diskBytes: 0,
    nextVmid: 1,
    closing: false,
    vms: { 0: vm },
    checkpoint: from && { name: from.name, id: from.id, host: from.host, ticket: from.ticket },
    tickets: {},
    frozen: {},
    migrations: {},
    past: [],
  };
  const { checkpoint } = system.clusters[clusterid] ?? { checkpoint: null };
  const diskBytes = from?.diskBytes ?? 0;
  return [{ type: 'start-master', clusterid, host: slot.host, shape, checkpoint, diskBytes }];
}

function noRoomFor(system: SystemData, { vcpus, memoryMib }: VmShape): string {
  const wanted = `a VM with ${vcpus} vcpus and ${memoryMib} MiB`;
  const hosts = Object.values(system.hosts);
  const fitting = hosts.filter((host) => host.cpus >= vcpus && host.ramBytes >= memoryMib * (1 << 20));
  if (fitting.length === 0) {
    const cpus = Math.max(0, ...hosts.map((host) => host.cpus));
    const mib = Math.floor(Math.max(0, ...hosts.map((host) => host.ramBytes)) / (1 << 20));
    return `no host is large enough for ${wanted}: the most that one has is ${cpus} cpus and ${mib} MiB`;
  }
  if (!fitting.some((host) => host.up))
    return `no host that could run ${wanted} is up; start sfld on ${fitting[0]?.host ?? 'it'}`;
  return `no host has room for ${wanted} at the moment; sfstate shows what is free`;
}

export function masterStarted(
  system: SystemData,
  { clusterid, diskBytes }: { clusterid: number; diskBytes: number },
): Effect[] {
  const cluster = findCluster(system, clusterid);
  cluster.diskBytes = diskBytes;
  const vm = masterVmOf(cluster);
  if (vm.status !== 'preparing') return [];
  vm.status = 'running';
  return [{ type: 'cluster-started', clusterid, host: vm.host }];
}

/** Ends a cluster with all it has. Without `force` only when no ticket is outstanding (manual section 5). */
export function shutdown(
  system: SystemData,
  { clusterid, force, byGuest }: { clusterid: number; force: boolean; byGuest: boolean },
): Effect[] {
  const cluster = findCluster(system, clusterid);
  const outstanding = Object.values(cluster.tickets).filter((ticket) => ticket.status === 'outstanding');
  if (outstanding.length > 0 && !force)
    throw new SnowflockError(
      'tickets-outstanding',
      `cluster ${clusterid} has clones that are not merged; merge or join first: ${outstanding.map((ticket) => ticket.ticket).join(', ')}`,
    );
  cluster.closing = true;
  const effects = [
    ...refuseRequests(system, (each) => each.clusterid === clusterid, {
      code: 'no-such-cluster',
      message: `cluster ${clusterid} was shut down`,
    }),
    // All others are those of its clones. It is forgotten already when the end of the cluster is under way.
    ...(cluster.vms[0] ? endTicketsOf(system, cluster, cluster.vms[0]) : []),
  ];
  // A guest that shuts its cluster down powers itself off next: its end will be reported.
  if (byGuest && !isEnded(masterVmOf(cluster))) return effects;
  return [...effects, ...destroyCluster(system, cluster)];
}

function destroyCluster(system: SystemData, cluster: Cluster): Effect[] {
  const { clusterid } = cluster;
  const open = system.cleanups.filter((cleanup) => cleanup.clusterid === clusterid);
  const feeding = cluster.checkpoint === null ? [] : [cluster.checkpoint];
  const moving = Object.values(cluster.migrations).flatMap(({ held }) => held);
  const hosts = new Set([...[...vmsOf(cluster), ...open, ...feeding].map(({ host }) => host), ...moving]);
  const isNews = vmsOf(cluster).some((vm) => vm.status !== 'destroyed');
  for (const vm of vmsOf(cluster)) vm.status = 'destroyed';
  // One for the whole cluster takes the place of those for its tickets and VMs.
  for (const cleanup of open)
    if (cleanup.ticket !== null || cleanup.vmid !== null)
      system.cleanups.splice(system.cleanups.indexOf(cleanup), 1);
  const cleanups = [...hosts].flatMap((host) =>
    openCleanup(system, { host, clusterid, ticket: null, vmid: null }),
  );
  return isNews ? [{ type: 'cluster-ended', clusterid }, ...cleanups] : cleanups;
}

/** A host has destroyed what the cleanup names: now it is free. */
export function cleaned(system: SystemData, cleanup: Cleanup): Effect[] {
  const index = system.cleanups.findIndex(
    (open) =>
      open.host === cleanup.host &&
      open.clusterid === cleanup.clusterid &&
      open.ticket === cleanup.ticket &&
      open.vmid === cleanup.vmid,
  );
  if (index < 0) return [];
  system.cleanups.splice(index, 1);
  const cluster = system.clusters[cleanup.clusterid];
  if (!cluster) return [];
  if (cleanup.vmid !== null) {
    const vm = cluster.vms[cleanup.vmid];
    if (vm?.host === cleanup.host && isEnded(vm)) vm.freed = true;
  } else destroyed(cluster, cleanup);
  const open = system.cleanups.some((other) => other.clusterid === cleanup.clusterid);
  if (cluster.closing && !open && vmsOf(cluster).length === 0) delete system.clusters[cleanup.clusterid];
  return [];
}

function destroyed(cluster: Cluster, cleanup: Cleanup): void {
  migrationCleaned(cluster, cleanup);
  for (const { ticket, host } of Object.values(cluster.frozen))
    if (host === cleanup.host && (cleanup.ticket === null || cleanup.ticket === ticket))
      delete cluster.frozen[ticket];
  for (const vm of vmsOf(cluster))
    if (vm.host === cleanup.host && (cleanup.ticket === null || vm.ticket === cleanup.ticket))
      delete cluster.vms[vm.vmid];
}

// ---- VMs ----------------------------------------------------------------------------------------------------------

/** A VM is gone, and with it its clones, which have nobody to return to; the end of a master VM is the end of its cluster. */
export function vmEnded(
  system: SystemData,
  { clusterid, vmid, ended }: { clusterid: number; vmid: number; ended: VmEnded },
): Effect[] {
  const cluster = findCluster(system, clusterid);
  const vm = findVm(cluster, vmid);
  if (isEnded(vm) && !vm.unreachable) return [];
  const status = ended.how === 'lost' ? 'lost' : 'exited';
  const reason = ended.reason === '' ? ended.how : ended.reason;
  return endVm(system, cluster, vm, { status, reason, left: leftBy(ended) });
}

function leftBy({ how, status = 0, resultBytes = 0 }: VmEnded): Left | null {
  if (how === 'lost') return null;
  return how === 'exited' ? { how, status, resultBytes } : { how: 'ended', status: null, resultBytes: 0 };
}

export function endVm(
  system: SystemData,
  cluster: Cluster,
  vm: Vm,
  end: { status: 'exited' | 'lost'; reason: string; left?: Left | null },
): Effect[] {
  const { clusterid, vmid, host, ticket } = { clusterid: cluster.clusterid, ...vm };
  if (vm.status !== 'destroyed')
    Object.assign(vm, { left: null, ranMs: ranMs(cluster, vm, unixTime(system)) }, end, {
      unreachable: false,
    });
  const effects: Effect[] = [
    { type: 'vm-ended', clusterid, vmid, host, ticket, how: end.status, reason: end.reason },
  ];
  if (vm.vmid !== 0)
    return [...effects, ...endMigrationOf(system, cluster, vm), ...endTicketsOf(system, cluster, vm)];
  cluster.closing = true;
  effects.push(
    ...refuseRequests(system, (each) => each.clusterid === clusterid, {
      code: 'no-such-cluster',
      message: `the master VM ended: ${end.reason}`,
    }),
    ...endTicketsOf(system, cluster, vm),
  );
  return [...effects, ...destroyCluster(system, cluster)];
}

/** The master VM could not be started: the cluster never was. */
export function masterFailed(
  system: SystemData,
  { clusterid, reason }: { clusterid: number; reason: string },
): Effect[] {
  const cluster = openCluster(system, clusterid);
  return endVm(system, cluster, masterVmOf(cluster), { status: 'lost', reason });
}
