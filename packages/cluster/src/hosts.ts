// Hosts: what they report, what their silence means, and how their VMs are compared with those that sfmd knows.
//
//   sfmd knows        the host lists it         it does not, of a new instance    it does not, same instance
//   not ended         as it should be           lost at once                      lost after VM_MISSING_AFTER_MS
//   lost by silence   master VM: it is back     master VM: lost for good          as for a new instance
//                     clone: is destroyed       clone: is destroyed (may be half there)
//   ended             is destroyed              nothing to do                     nothing to do
//   unknown           is destroyed              -                                 -
//   migrating         it is on both hosts for a while; which of them has it is told by itself, or it is missing on both too long
//
// A clone that was reported lost stays lost: the VM that forked it has been told. What it holds comes free when its host, back
// again, has confirmed that it is gone.

import { endTicketsOf, rollBack } from './tickets.ts';
import { parseVmRef, SnowflockError, type HostReport, type VmRef } from '@snowflock/protocol';
import { checkpointsReported } from './checkpoints.ts';
import { openCleanup, vmEndedEffect, type Effect } from './effects.ts';
import { expire, prepareAgain } from './restart.ts';
import { endVm } from './lifecycle.ts';
import { endMigrationOf, isMigrating, movingOf } from './migration-end.ts';
import { findHost, sourceHostOf } from './lookup.ts';
import {
  CLUSTERID_MAX,
  isEnded,
  ranMs,
  unixTime,
  VM_MISSING_AFTER_MS,
  vmsOf,
  type Cluster,
  type SystemData,
  type Vm,
} from './state.ts';

export function hostReported(
  system: SystemData,
  { host: name, report, nowMs }: { host: string; report: HostReport; nowMs: number },
): Effect[] {
  const host = findHost(system, name);
  const listed = report.vms && new Map(report.vms.map((vm) => [vm, knownRange(vm)]));
  const effects: Effect[] = [];
  const instance = report.instance ?? null;
  const restarted = host.instance !== null && instance !== null && host.instance !== instance;
  const wasUp = host.up;
  Object.assign(host, {
    address: report.address,
    sfldPort: report.sfldPort,
    accel: report.accel,
    reportedAtMs: nowMs,
  });
  system.nowMs = nowMs;
  if (instance !== null) host.instance = instance;
  if (!host.up) effects.push({ type: 'host-up', host: name });
  host.up = true;
  if (listed) effects.push(...reconciled(system, { host: name, listed, fresh: restarted || !wasUp, nowMs }));
  else effects.push(...believed(system, { host: name, restarted }));
  if (report.checkpoints)
    effects.push(
      ...checkpointsReported(system, { host, held: report.checkpoints, fresh: restarted || !wasUp }),
    );
  if (restarted) effects.push(...resumeForks(system, name));
  return effects;
}

/** A report that does not tell what runs there. */
function believed(system: SystemData, { host, restarted }: { host: string; restarted: boolean }): Effect[] {
  const effects: Effect[] = [];
  for (const { cluster, vm } of vmsAt(system, host)) {
    if (vm.vmid === 0 && vm.unreachable && vm.status === 'lost')
      Object.assign(vm, { status: 'running', reason: null, ranMs: null });
    vm.unreachable = false;
    if (restarted && !isEnded(vm))
      effects.push(
        ...endVm(system, cluster, vm, { status: 'lost', reason: `sfld of host ${host} was restarted` }),
      );
  }
  return effects;
}

interface Listing {
  readonly host: string;
  readonly listed: ReadonlyMap<string, VmRef>;
  /** The first report of this instance, or after silence: nothing of what is on its way can have been before it. */
  readonly fresh: boolean;
  readonly nowMs: number;
}

function reconciled(system: SystemData, { host, listed, fresh, nowMs }: Listing): Effect[] {
  const effects: Effect[] = [];
  const unknown = new Map(listed);
  const destroy = (clusterid: number, vmid: number | null): void =>
    void effects.push(...openCleanup(system, { host, clusterid, ticket: null, vmid }));
  for (const { cluster, vm } of vmsAt(system, host)) {
    const { clusterid } = cluster;
    const isListed = unknown.delete(`${clusterid}:${vm.vmid}`);
    const isMoving = movingOf(cluster, vm.vmid) !== undefined;
    if (vm.vmid === 0 && vm.unreachable && vm.status === 'lost')
      Object.assign(vm, { status: 'running', reason: null, unreachable: false, ranMs: null });
    if (isEnded(vm)) {
      if (vm.status !== 'destroyed' && (isListed || (fresh && !vm.freed))) destroy(clusterid, vm.vmid);
      vm.unreachable = false;
    } else if (isListed || isUnusedClone(cluster, vm)) vm.missingSinceMs = null;
    else if ((fresh && !isMoving) || isMissingTooLong(vm, nowMs)) {
      const reason = `host ${host} no longer has it${fresh ? ' since it is back' : ''}`;
      effects.push(...endVm(system, cluster, vm, { status: 'lost', reason }));
      if (vm.vmid !== 0) destroy(clusterid, vm.vmid);
    }
  }
  for (const { clusterid, vmid } of unknown.values()) {
    if (isMigrating(system.clusters[clusterid], vmid, host)) continue;
    // Ids that live somewhere are never given out again, whatever this sfmd remembers.
    system.nextClusterid = Math.max(system.nextClusterid, clusterid + 1);
    destroy(clusterid, system.clusters[clusterid] ? vmid : null);
  }
  return effects;
}

function knownRange(name: string): VmRef {
  const ref = parseVmRef(name);
  if (ref.clusterid <= CLUSTERID_MAX) return ref;
  throw new SnowflockError(
    'bad-request',
    `'${name}' cannot be a VM: clusterids end at ${CLUSTERID_MAX}; does its sfld run the same SnowFlock release?`,
  );
}

/** A VM that is being prepared is listed when its host has got that far; the answer to the preparation decides. */
function isMissingTooLong(vm: Vm, nowMs: number): boolean {
  if (vm.status === 'preparing') return false;
  vm.missingSinceMs ??= nowMs;
  return nowMs - vm.missingSinceMs >= VM_MISSING_AFTER_MS;
}

/** Of a ticket that waits to be used: what its host lost of it is prepared again. */
function isUnusedClone(cluster: Cluster, vm: Vm): boolean {
  return vm.ticket !== null && cluster.tickets[vm.ticket]?.status === 'unused';
}

/** What the sfld before had under way: forks of its VMs are rolled back, preparations for later ones made again. */
function resumeForks(system: SystemData, host: string): Effect[] {
  const effects: Effect[] = [];
  for (const cluster of Object.values(system.clusters)) {
    if (cluster.closing) continue;
    for (const ticket of Object.values(cluster.tickets)) {
      // A fork that was rolled back before it in this very loop may have taken it along.
      if (cluster.tickets[ticket.ticket] === undefined) continue;
      if (ticket.status === 'unused') effects.push(...prepareAgain(cluster, ticket, host));
      else if (sourceHostOf(cluster, ticket) === host && !ticket.launched)
        effects.push(
          ...rollBack(system, cluster, ticket, `sfld of host ${host} was restarted during the fork`),
        );
    }
  }
  return effects;
}

/** Marks hosts down that have been silent too long, whose VMs are lost; gives back what nobody has claimed. */
export function tick(system: SystemData, nowMs: number): Effect[] {
  system.nowMs = nowMs;
  const effects = expire(system);
  for (const host of Object.values(system.hosts)) {
    const silentMs = nowMs - (host.reportedAtMs ?? nowMs);
    if (!host.up || silentMs <= system.limits.hostTimeoutMs) continue;
    host.up = false;
    effects.push({ type: 'host-down', host: host.host });
    const reason = `host ${host.host} stopped answering ${Math.round(silentMs / 1000)} s before`;
    for (const { cluster, vm } of vmsAt(system, host.host)) {
      if (isEnded(vm)) continue;
      Object.assign(vm, {
        status: 'lost',
        reason,
        unreachable: true,
        ranMs: ranMs(cluster, vm, unixTime(system)),
      });
      effects.push(vmEndedEffect(cluster, vm));
      // A master VM may be back; a clone that was told lost stays lost.
      if (vm.vmid !== 0)
        effects.push(...endMigrationOf(system, cluster, vm), ...endTicketsOf(system, cluster, vm));
    }
  }
  return effects;
}

function vmsAt(system: SystemData, host: string): { cluster: Cluster; vm: Vm }[] {
  return Object.values(system.clusters).flatMap((cluster) =>
    vmsOf(cluster).flatMap((vm) => (vm.host === host ? [{ cluster, vm }] : [])),
  );
}
