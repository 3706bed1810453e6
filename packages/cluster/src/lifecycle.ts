// Hosts and clusters: reports, silence, seeding, ends of VMs, shutdown, and what hosts confirm to have cleaned up.

import { SnowflockError, type HostReport, type VmEnded, type VmShape } from '@snowflock/protocol';
import { defaultAllocator } from './allocator.ts';
import { openCleanup, type Effect } from './effects.ts';
import { findCluster, findHost, findVm, masterVmOf, openCluster } from './lookup.ts';
import { CLUSTERID_MAX, HOST_DOWN_AFTER_MS, isEnded, vmRamBytes, vmsOf } from './state.ts';
import type { Cleanup, Cluster, SystemData, Vm } from './state.ts';
import { serveQueue, type Chance } from './queue.ts';
import { endTicket } from './tickets.ts';
import { hostRooms } from './views.ts';

// ---- hosts --------------------------------------------------------------------------------------------------------

export function hostReported(
  system: SystemData,
  { host: name, report, nowMs }: { host: string; report: HostReport; nowMs: number },
  chance: Chance,
): Effect[] {
  const host = findHost(system, name);
  const effects: Effect[] = [];
  const instance = report.instance ?? null;
  const restarted = host.instance !== null && instance !== null && host.instance !== instance;
  Object.assign(host, {
    address: report.address,
    sfldPort: report.sfldPort,
    accel: report.accel,
    reportedAtMs: nowMs,
  });
  if (instance !== null) host.instance = instance;
  if (!host.up) effects.push({ type: 'host-up', host: name });
  host.up = true;
  for (const { cluster, vm } of vmsAt(system, name)) {
    if (vm.vmid === 0 && vm.unreachable && vm.status === 'lost')
      Object.assign(vm, { status: 'running', reason: null });
    vm.unreachable = false;
    if (restarted && !isEnded(vm))
      effects.push(
        ...endVm(system, cluster, vm, { status: 'lost', reason: `sfld of host ${name} was restarted` }),
      );
  }
  return [...effects, ...serveQueue(system, chance)];
}

/** Marks hosts down that have been silent too long; their VMs are lost. */
export function tick(system: SystemData, nowMs: number): Effect[] {
  const effects: Effect[] = [];
  for (const host of Object.values(system.hosts)) {
    const silentMs = nowMs - (host.reportedAtMs ?? nowMs);
    if (!host.up || silentMs <= HOST_DOWN_AFTER_MS) continue;
    host.up = false;
    effects.push({ type: 'host-down', host: host.host });
    const reason = `host ${host.host} stopped answering ${Math.round(silentMs / 1000)} s before`;
    for (const { cluster, vm } of vmsAt(system, host.host)) {
      if (isEnded(vm)) continue;
      Object.assign(vm, { status: 'lost', reason, unreachable: true });
      effects.push({ type: 'vm-ended', clusterid: cluster.clusterid, vmid: vm.vmid, reason });
    }
  }
  return effects;
}

function vmsAt(system: SystemData, host: string): { cluster: Cluster; vm: Vm }[] {
  return Object.values(system.clusters).flatMap((cluster) =>
    vmsOf(cluster).flatMap((vm) => (vm.host === host ? [{ cluster, vm }] : [])),
  );
}

// ---- clusters -----------------------------------------------------------------------------------------------------

/** A new cluster with its master VM on the least loaded host that has room. Its id is in the effect. */
export function seed(system: SystemData, shape: VmShape, { random }: Chance): Effect[] {
  const request = { count: 1, procs: false, vcpus: shape.vcpus, ramBytes: vmRamBytes(shape) };
  const slot = defaultAllocator.allocate(hostRooms(system), request, random)[0];
  if (!slot) throw new SnowflockError('no-resources', noRoomFor(system, shape));
  if (system.nextClusterid > CLUSTERID_MAX)
    throw new SnowflockError('no-resources', `all clusterids up to ${CLUSTERID_MAX} have been used`);
  const clusterid = system.nextClusterid++;
  const vm: Vm = {
    ...{ vmid: 0, host: slot.host, vcpus: shape.vcpus, memoryMib: shape.memoryMib, ticket: null },
    ...{ status: 'preparing', reason: null, unreachable: false },
  };
  system.clusters[clusterid] = {
    clusterid,
    shape,
    diskBytes: 0,
    nextVmid: 1,
    closing: false,
    vms: { 0: vm },
    tickets: {},
    past: [],
  };
  return [{ type: 'start-master', clusterid, host: slot.host, shape }];
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
  if (vm.status === 'preparing') vm.status = 'running';
  return [];
}

/** Ends a cluster with all it has. Without `force` only when no ticket is outstanding (manual section 5). */
export function shutdown(
  system: SystemData,
  { clusterid, force, byGuest }: { clusterid: number; force: boolean; byGuest: boolean },
  chance: Chance,
): Effect[] {
  const cluster = findCluster(system, clusterid);
  const outstanding = Object.values(cluster.tickets).filter((ticket) => ticket.status === 'outstanding');
  if (outstanding.length > 0 && !force)
    throw new SnowflockError(
      'tickets-outstanding',
      `cluster ${clusterid} has clones that are not merged; merge or join first: ${outstanding.map((ticket) => ticket.ticket).join(', ')}`,
    );
  cluster.closing = true;
  const waiting = system.queue.filter((each) => each.clusterid === clusterid);
  for (const each of waiting) system.queue.splice(system.queue.indexOf(each), 1);
  const effects = waiting.map(({ requestId }): Effect => ({
    type: 'refused',
    requestId,
    code: 'no-such-cluster',
    message: `cluster ${clusterid} was shut down`,
  }));
  for (const ticket of Object.values(cluster.tickets))
    effects.push(
      ...endTicket(system, cluster, ticket, ticket.status === 'outstanding' ? 'merged' : 'disposed'),
    );
  // A guest that shuts its cluster down powers itself off next: its end will be reported.
  if (byGuest && !isEnded(masterVmOf(cluster))) return [...effects, ...serveQueue(system, chance)];
  return [...effects, ...destroyCluster(system, cluster), ...serveQueue(system, chance)];
}

function destroyCluster(system: SystemData, cluster: Cluster): Effect[] {
  const { clusterid } = cluster;
  const open = system.cleanups.filter((cleanup) => cleanup.clusterid === clusterid);
  const hosts = new Set([...vmsOf(cluster), ...open].map(({ host }) => host));
  for (const vm of vmsOf(cluster)) vm.status = 'destroyed';
  // One for the whole cluster takes the place of those for its tickets.
  for (const cleanup of open)
    if (cleanup.ticket !== null) system.cleanups.splice(system.cleanups.indexOf(cleanup), 1);
  return [...hosts].flatMap((host) => openCleanup(system, { host, clusterid, ticket: null }));
}

/** A host has destroyed what the cleanup names: now it is free. */
export function cleaned(system: SystemData, cleanup: Cleanup, chance: Chance): Effect[] {
  const index = system.cleanups.findIndex(
    (open) =>
      open.host === cleanup.host && open.clusterid === cleanup.clusterid && open.ticket === cleanup.ticket,
  );
  const cluster = system.clusters[cleanup.clusterid];
  if (index < 0 || !cluster) return [];
  system.cleanups.splice(index, 1);
  for (const vm of vmsOf(cluster))
    if (vm.host === cleanup.host && (cleanup.ticket === null || vm.ticket === cleanup.ticket))
      delete cluster.vms[vm.vmid];
  const open = system.cleanups.some((other) => other.clusterid === cleanup.clusterid);
  if (cluster.closing && !open && vmsOf(cluster).length === 0) delete system.clusters[cleanup.clusterid];
  return serveQueue(system, chance);
}

// ---- VMs ----------------------------------------------------------------------------------------------------------

/** A VM is gone. The end of a master VM is the end of its cluster: its clones have nobody to return to. */
export function vmEnded(
  system: SystemData,
  { clusterid, vmid, ended }: { clusterid: number; vmid: number; ended: VmEnded },
  chance: Chance,
): Effect[] {
  const cluster = findCluster(system, clusterid);
  const vm = findVm(cluster, vmid);
  const effects: Effect[] = [];
  if (!isEnded(vm) || vm.unreachable) {
    const status = ended.how === 'lost' ? 'lost' : 'exited';
    effects.push(
      ...endVm(system, cluster, vm, { status, reason: ended.reason === '' ? ended.how : ended.reason }),
    );
  }
  return vmid === 0 || effects.length > 0 ? [...effects, ...serveQueue(system, chance)] : effects;
}

function endVm(
  system: SystemData,
  cluster: Cluster,
  vm: Vm,
  end: { status: 'exited' | 'lost'; reason: string },
): Effect[] {
  if (vm.status !== 'destroyed') Object.assign(vm, end, { unreachable: false });
  const effects: Effect[] = [
    { type: 'vm-ended', clusterid: cluster.clusterid, vmid: vm.vmid, reason: end.reason },
  ];
  if (vm.vmid !== 0) return effects;
  cluster.closing = true;
  for (const waiting of system.queue.filter((each) => each.clusterid === cluster.clusterid)) {
    system.queue.splice(system.queue.indexOf(waiting), 1);
    effects.push({
      type: 'refused',
      requestId: waiting.requestId,
      code: 'no-such-cluster',
      message: `the master VM ended: ${end.reason}`,
    });
  }
  for (const ticket of Object.values(cluster.tickets))
    effects.push(...endTicket(system, cluster, ticket, 'merged'));
  return [...effects, ...destroyCluster(system, cluster)];
}

/** The master VM could not be started: the cluster never was. */
export function masterFailed(
  system: SystemData,
  { clusterid, reason }: { clusterid: number; reason: string },
  chance: Chance,
): Effect[] {
  const cluster = openCluster(system, clusterid);
  return [
    ...endVm(system, cluster, masterVmOf(cluster), { status: 'lost', reason }),
    ...serveQueue(system, chance),
  ];
}
