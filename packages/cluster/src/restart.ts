// What becomes of what was half done when sfmd ended, by whatever means: everything in the state was stored before anybody
// was told of it, and nothing was told that is not in it.
//
//   half done                                        after the restart
//   a master VM's start was under way                rolled back: lost, its cluster ends (its caller got no answer)
//   it had started, the answer was lost              it runs; sfstate shows it
//   a request was waiting in line                    keeps its place until its sfld has asked again, given up after 60 s
//   a ticket was granted, the answer was lost        asked again, the same ticket; disposed when nobody asks for 60 s
//   a ticket was being prepared                      finished: the hosts are asked again, which changes nothing there twice
//   a ticket was redeemed, the answer was lost       asked again, the same answer
//   ... and no launch is reported in 120 s           rolled back: its clones are destroyed, the ticket is merged
//   a launch or an end of a VM could not be told     told again by sfld; an end is seen in the host's reports, too
//   merge, join, dispose, shutdown: hosts to clean   finished: the open cleanups are in the state
//   a VM was being migrated                          asked for again: begun anew, or what it has come to is told
//   a checkpoint was being written                   forgotten; there all the same when its host finishes it
//   clones had run for some time                     it counts, for the budget of a join, and what they ran meanwhile, too
//   a host was up                                    up until it has been silent for as long as always
//   a host is no longer in the configuration         its VMs are lost, what they held is free, its cleanups are dropped

import { endVm, cleaned } from './lifecycle.ts';
import { forgetUnwritten } from './checkpoints.ts';
import { openCleanup, prepareClones, prepareSource, type Effect } from './effects.ts';
import type { Limits } from './limits.ts';
import { sourceHostOf } from './lookup.ts';
import { migrateAgain, migrationsWithout } from './migration.ts';
import {
  isEnded,
  LAUNCH_REPORT_AFTER_MS,
  newHost,
  UNCLAIMED_AFTER_MS,
  unixTime,
  vmsOf,
  clonesOf,
  type Cluster,
  type HostCapacity,
  type SystemData,
  type Ticket,
} from './state.ts';
import { disposeTicket, rollBack } from './tickets.ts';
import { hostUsage } from './views.ts';

export interface Restart {
  /** As configured now. */
  readonly hosts: readonly HostCapacity[];
  readonly clusterid: number;
  readonly limits?: Limits;
  readonly nowMs: number;
  /** The same moment as the clock of the machine has it. */
  readonly unixMs: number;
}

/** The first command of every sfmd. Yields what is to be done once more. */
export function restarted(
  system: SystemData,
  { hosts, clusterid, limits, nowMs, unixMs }: Restart,
): Effect[] {
  const effects: Effect[] = [];
  system.nowMs = nowMs;
  system.unixOffsetMs = unixMs - nowMs;
  system.starts += 1;
  if (limits) system.limits = limits;
  system.nextClusterid = Math.max(system.nextClusterid, clusterid);
  for (const waiting of system.queue) waiting.unclaimedSinceMs = nowMs;
  for (const cluster of Object.values(system.clusters)) {
    for (const vm of vmsOf(cluster)) vm.missingSinceMs = null;
    for (const ticket of Object.values(cluster.tickets)) {
      ticket.sinceMs = nowMs;
      // of an sfmd that did not keep it
      if (ticket.status === 'outstanding') ticket.forkedUnixMs ??= unixTime(system);
    }
  }
  effects.push(...forgetUnwritten(system), ...configured(system, hosts));
  for (const host of Object.values(system.hosts)) host.reportedAtMs = host.up ? nowMs : null;
  for (const cluster of Object.values(system.clusters)) {
    const master = cluster.vms[0];
    if (cluster.closing || !master) continue;
    if (master.status === 'preparing')
      effects.push(
        ...endVm(system, cluster, master, {
          status: 'lost',
          reason: 'sfmd was restarted while it was being started',
        }),
      );
    else {
      effects.push(...migrateAgain(cluster));
      for (const ticket of Object.values(cluster.tickets))
        effects.push(...prepareAgain(cluster, ticket, null));
    }
  }
  // Those that were opened just now are among them.
  const others = effects.filter((effect) => effect.type !== 'clean-up');
  const cleanups = system.cleanups.map((open): Effect => ({ type: 'clean-up', ...open }));
  return [...others, ...cleanups];
}

/** Hosts come and go with the configuration. */
function configured(system: SystemData, capacities: readonly HostCapacity[]): Effect[] {
  const effects: Effect[] = [];
  const names = new Set(capacities.map(({ host }) => host));
  for (const name of Object.keys(system.hosts))
    if (!names.has(name)) effects.push(...removeHost(system, name));
  const usage = hostUsage(system);
  for (const capacity of capacities) {
    const known = Object.hasOwn(system.hosts, capacity.host) ? system.hosts[capacity.host] : undefined;
    const host = known ?? newHost(capacity);
    const used = usage.get(host.host) ?? { cpus: 0, ramBytes: 0 };
    Object.assign(host, { cpus: capacity.cpus, ramBytes: capacity.ramBytes });
    host.shrunk = used.cpus > host.cpus || used.ramBytes > host.ramBytes;
    system.hosts[host.host] = host;
  }
  return effects;
}

/** As if it had confirmed everything: what is still there is destroyed if it ever reports again. */
function removeHost(system: SystemData, name: string): Effect[] {
  const effects: Effect[] = migrationsWithout(system, name);
  for (const cluster of Object.values(system.clusters))
    for (const vm of vmsOf(cluster)) {
      if (vm.host !== name || vm.status === 'destroyed') continue;
      if (!isEnded(vm) || vm.vmid === 0)
        effects.push(
          ...endVm(system, cluster, vm, {
            status: 'lost',
            reason: `host ${name} was removed from cluster_hosts`,
          }),
        );
      if (vm.vmid !== 0)
        effects.push(
          ...openCleanup(system, { host: name, clusterid: cluster.clusterid, ticket: null, vmid: vm.vmid }),
        );
    }
  for (const cleanup of system.cleanups.filter((open) => open.host === name))
    effects.push(...cleaned(system, cleanup));
  delete system.hosts[name];
  return effects.filter((effect) => effect.type !== 'clean-up' || effect.host !== name);
}

/** Asks for what is missing of a ticket that waits to be used: everything that is under way, or all on one host. */
export function prepareAgain(cluster: Cluster, ticket: Ticket, onlyHost: string | null): Effect[] {
  if (ticket.status !== 'unused') return [];
  const effects: Effect[] = [];
  const waiting = clonesOf(cluster, ticket).filter((vm) => vm.status === 'preparing');
  if (onlyHost === null ? ticket.sourcePreparing : sourceHostOf(cluster, ticket) === onlyHost) {
    Object.assign(ticket, { sourcePreparing: true, sourceError: null });
    effects.push(prepareSource(cluster, ticket));
  }
  if (onlyHost !== null && waiting.some((vm) => vm.host === onlyHost))
    ticket.preparing = [...new Set([...ticket.preparing, onlyHost])];
  for (const host of onlyHost === null ? ticket.preparing : [onlyHost]) {
    const clones = waiting.flatMap(({ vmid, vcpus, host: at }) => (at === host ? [{ vmid, vcpus }] : []));
    if (clones.length > 0) effects.push(prepareClones(cluster, { ticket, host, clones }));
  }
  return effects;
}

/** What nobody has asked for again, or told the end of, for too long. */
export function expire(system: SystemData): Effect[] {
  const effects: Effect[] = [];
  const given = system.queue.filter(
    ({ unclaimedSinceMs: since }) => since !== null && system.nowMs - since > UNCLAIMED_AFTER_MS,
  );
  for (const waiting of given) system.queue.splice(system.queue.indexOf(waiting), 1);
  for (const cluster of Object.values(system.clusters))
    for (const ticket of cluster.closing ? [] : Object.values(cluster.tickets)) {
      // One that expired before it in this very loop may have taken it along.
      if (cluster.tickets[ticket.ticket] === undefined) continue;
      const ageMs = system.nowMs - ticket.sinceMs;
      if (ticket.status === 'unused' && !ticket.delivered && ageMs > UNCLAIMED_AFTER_MS)
        effects.push(...disposeTicket(system, { clusterid: cluster.clusterid, ticket: ticket.ticket }));
      else if (ticket.status === 'outstanding' && !ticket.launched && ageMs > LAUNCH_REPORT_AFTER_MS)
        effects.push(
          ...rollBack(
            system,
            cluster,
            ticket,
            `its fork was not reported in ${LAUNCH_REPORT_AFTER_MS / 1000} s`,
          ),
        );
    }
  return effects;
}
