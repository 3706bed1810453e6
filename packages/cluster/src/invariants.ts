// What is true of the state after every command, whatever came before.

import { VMID_MAX } from '@snowflock/protocol';
import { clonesOf, isEnded, PAST_TICKETS_MAX, vmsOf, type Cluster, type SystemData } from './state.ts';
import { hostUsage } from './views.ts';

/** Everything that is wrong; empty when all is well. */
export function brokenInvariants(system: SystemData): string[] {
  const wrong: string[] = [];
  const check = (holds: boolean, what: string): void => void (holds || wrong.push(what));
  for (const [name, used] of hostUsage(system)) {
    const host = system.hosts[name];
    check(
      host?.shrunk === true || used.cpus <= (host?.cpus ?? 0),
      `host ${name} has promised ${used.cpus} of ${host?.cpus ?? 0} cpus`,
    );
    check(
      host?.shrunk === true || used.ramBytes <= (host?.ramBytes ?? 0),
      `host ${name} has promised ${used.ramBytes} bytes of ${host?.ramBytes ?? 0}`,
    );
  }
  for (const waiting of system.queue) {
    const cluster = system.clusters[waiting.clusterid];
    check(
      cluster?.closing === false,
      `request ${waiting.requestId} waits for a cluster that is gone or closing`,
    );
    const owner = cluster?.vms[waiting.owner];
    check(
      owner !== undefined && (owner.vmid === 0 || !isEnded(owner)),
      `request ${waiting.requestId} is one of vmid ${waiting.owner}, which has ended`,
    );
  }
  for (const cluster of Object.values(system.clusters)) {
    const name = `cluster ${cluster.clusterid}`;
    check(cluster.clusterid < system.nextClusterid, `${name}: its id may be given out again`);
    check(cluster.past.length <= PAST_TICKETS_MAX, `${name}: remembers too many tickets`);
    check(cluster.closing || cluster.vms[0] !== undefined, `${name}: has no master VM`);
    wrong.push(...brokenFrozen(system, cluster), ...brokenMigrations(system, cluster));
    for (const vm of vmsOf(cluster)) {
      check(
        vm.vmid < cluster.nextVmid && vm.vmid <= VMID_MAX,
        `${name}: vmid ${vm.vmid} may be given out again`,
      );
      const ticket = vm.ticket === null ? undefined : cluster.tickets[vm.ticket];
      if (vm.status === 'destroyed') {
        const open = system.cleanups.some(
          (each) =>
            each.host === vm.host &&
            each.clusterid === cluster.clusterid &&
            each.vmid === null &&
            (each.ticket === null || each.ticket === vm.ticket),
        );
        check(open, `${name}: vmid ${vm.vmid} is destroyed and no host was asked to clean up`);
      } else if (vm.vmid !== 0)
        check(ticket?.vmids.includes(vm.vmid) === true, `${name}: vmid ${vm.vmid} belongs to no ticket`);
    }
    for (const ticket of Object.values(cluster.tickets)) {
      const owner = cluster.vms[ticket.owner];
      check(
        owner !== undefined &&
          (!isEnded(owner) || owner.unreachable) &&
          (owner.vmid === 0 || !isEnded(owner)),
        `${name}: ticket ${ticket.ticket} belongs to vmid ${ticket.owner}, which is ${owner?.status ?? 'gone'}`,
      );
      check(
        ticket.vmids.every((vmid) => vmid > ticket.owner),
        `${name}: ticket ${ticket.ticket} has clones older than the VM that forks`,
      );
      check(
        clonesOf(cluster, ticket).length === ticket.vmids.length,
        `${name}: ticket ${ticket.ticket} lacks VMs`,
      );
      check(!cluster.closing, `${name}: has tickets though it is closing`);
      check(
        !cluster.past.some((past) => past.ticket === ticket.ticket),
        `${name}: ticket ${ticket.ticket} is past and present`,
      );
    }
  }
  for (const cleanup of system.cleanups)
    check(
      cleanup.clusterid < system.nextClusterid,
      `cleanup for cluster ${cleanup.clusterid}, whose id may be given out again`,
    );
  return wrong;
}

/** One image for each ticket, where its owner runs, or ran when it forked with it; and for each that has ended, until its host has confirmed. */
function brokenFrozen(system: SystemData, cluster: Cluster): string[] {
  const wrong: string[] = [];
  const name = `cluster ${cluster.clusterid}`;
  for (const { ticket, owner, status } of Object.values(cluster.tickets)) {
    const host = cluster.frozen[ticket]?.host;
    if (host === undefined || (status === 'unused' && host !== cluster.vms[owner]?.host))
      wrong.push(`${name}: the frozen image of ticket ${ticket} is counted on ${host ?? 'no host'}`);
  }
  for (const { ticket, host } of Object.values(cluster.frozen)) {
    const ending = system.cleanups.some(
      (open) =>
        open.clusterid === cluster.clusterid &&
        open.host === host &&
        open.vmid === null &&
        (open.ticket === null || open.ticket === ticket),
    );
    if (!cluster.tickets[ticket] && !ending)
      wrong.push(`${name}: holds memory on ${host} for ticket ${ticket}, which has ended`);
  }
  return wrong;
}

/** A VM is migrated once at a time, from where it is; what hosts hold for one that has ended, they are asked to free. */
function brokenMigrations(system: SystemData, cluster: Cluster): string[] {
  const wrong: string[] = [];
  const { clusterid, vms } = cluster;
  const seen = new Set<number>();
  for (const { ticket, vmid, from, to, moved, ending, held } of Object.values(cluster.migrations)) {
    const name = `cluster ${clusterid}: migration ${ticket} of vmid ${vmid}`;
    if (seen.has(vmid)) wrong.push(`${name}: it is being migrated twice`);
    seen.add(vmid);
    const isClosing = cluster.closing;
    if (!ending && !isClosing && vms[vmid]?.host !== (moved ? to : from))
      wrong.push(`${name}: the VM is on ${vms[vmid]?.host ?? 'no host'}`);
    if (held.length === 0) wrong.push(`${name}: nobody holds anything for it`);
    for (const host of ending || isClosing ? held : []) {
      const open = system.cleanups.some(
        (each) =>
          each.host === host &&
          each.clusterid === clusterid &&
          each.vmid === null &&
          (each.ticket === null || each.ticket === ticket),
      );
      // a guest that shuts its cluster down powers itself off first
      if (!open && !(isClosing && !ending)) wrong.push(`${name}: host ${host} was not asked to clean up`);
    }
  }
  return wrong;
}
