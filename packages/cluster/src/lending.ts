// Where the resources of hosts come from, for whoever shares them with SnowFlock: a batch system (SGE, Slurm), or nobody.
//
//                 needsOf(system) after every change: who waits for what, in line; what is lent and not used
//   sfmd  ───────────────────────────────────────────────────────────────────────────────────────────────────▶  lender
//         ◀──────────────────────────────────────────────────────────────────────────────────────────────────
//                 command 'capacity-changed': from now on SnowFlock may use this much of this host
//
//   asynchronous grant     a request waits in line; the lender lends when it can, and the line is served
//   partial grant          it lends less than was asked for: a request is granted from its `min` on
//   release                what is lent and not used is in the needs; the lender takes it back by lowering the capacity
//   external consumption   what others use of a host is not lent
//   loss of a grant        the capacity falls below what is promised: the youngest clones there are lost, with the reason
//
// With no lender (the default) hosts have what the configuration says, all the time. Which host a VM goes to, within what is
// lent, is the allocator's to say; who is served first is sfmd's own line, so that nobody starves with either.

import { openCleanup, type Effect } from './effects.ts';
import { endVm } from './lifecycle.ts';
import { findHost } from './lookup.ts';
import { capacityOf, isEnded, vmRamBytes, vmsOf, type SystemData } from './state.ts';
import { hostUsage } from './views.ts';

export interface CapacityChange {
  readonly host: string;
  /** Of the configured ones; null: all of them, nobody else shares the host. */
  readonly lent: { readonly cpus: number; readonly ramBytes: number } | null;
  /** For those who lose a clone by it. */
  readonly reason: string;
}

export interface Needs {
  /** In the order in which they will be served. */
  readonly waiting: readonly {
    readonly requestId: string;
    readonly clusterid: number;
    /** VMs, or processors if `procs`. */
    readonly count: number;
    readonly least: number;
    readonly procs: boolean;
    readonly vcpus: number;
    readonly ramBytes: number;
  }[];
  /** Lent and not promised to any VM: may be taken back without a loss. */
  readonly idle: readonly { readonly host: string; readonly cpus: number; readonly ramBytes: number }[];
}

export function needsOf(system: SystemData): Needs {
  const usage = hostUsage(system);
  return {
    waiting: system.queue.flatMap(({ requestId, clusterid, request }) => {
      const shape = system.clusters[clusterid]?.shape;
      if (!shape) return [];
      const { nclones: count, min, procs } = request;
      const least = min < 0 ? count : Math.max(min, 1);
      return [{ requestId, clusterid, count, least, procs, vcpus: shape.vcpus, ramBytes: vmRamBytes(shape) }];
    }),
    idle: Object.values(system.hosts).map((host) => {
      const used = usage.get(host.host) ?? { cpus: 0, ramBytes: 0 };
      const { cpus, ramBytes } = capacityOf(host);
      return {
        host: host.host,
        cpus: Math.max(0, cpus - used.cpus),
        ramBytes: Math.max(0, ramBytes - used.ramBytes),
      };
    }),
  };
}

export function capacityChanged(system: SystemData, { host: name, lent, reason }: CapacityChange): Effect[] {
  const host = findHost(system, name);
  host.lent = lent;
  const effects: Effect[] = [];
  const capacity = capacityOf(host);
  const used = hostUsage(system).get(name) ?? { cpus: 0, ramBytes: 0 };
  const clones = Object.values(system.clusters).flatMap((cluster) =>
    vmsOf(cluster).flatMap((vm) =>
      vm.host === name && vm.vmid !== 0 && !vm.freed && vm.status !== 'destroyed' ? [{ cluster, vm }] : [],
    ),
  );
  // The youngest first: they have the least to lose. What they hold comes free when the host has confirmed.
  for (const { cluster, vm } of clones.sort((a, b) => b.vm.vmid - a.vm.vmid)) {
    if (used.cpus <= capacity.cpus && used.ramBytes <= capacity.ramBytes) break;
    used.cpus -= vm.vcpus;
    used.ramBytes -= vmRamBytes(vm);
    const { clusterid } = cluster;
    if (!isEnded(vm)) effects.push(...endVm(system, cluster, vm, { status: 'lost', reason }));
    effects.push(...openCleanup(system, { host: name, clusterid, ticket: null, vmid: vm.vmid }));
  }
  return effects;
}
