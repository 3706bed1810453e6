// What is true of the state after every command, whatever came before.

import { clonesOf, PAST_TICKETS_MAX, QUEUE_MAX, VMID_MAX, vmsOf, type SystemData } from './state.ts';
import { hostUsage } from './views.ts';

/** Everything that is wrong; empty when all is well. */
export function brokenInvariants(system: SystemData): string[] {
  const wrong: string[] = [];
  const check = (holds: boolean, what: string): void => void (holds || wrong.push(what));
  for (const [name, used] of hostUsage(system)) {
    const host = system.hosts[name];
    check(
      used.cpus <= (host?.cpus ?? 0),
      `host ${name} has promised ${used.cpus} of ${host?.cpus ?? 0} cpus`,
    );
    check(
      used.ramBytes <= (host?.ramBytes ?? 0),
      `host ${name} has promised ${used.ramBytes} bytes of ${host?.ramBytes ?? 0}`,
    );
  }
  check(system.queue.length <= QUEUE_MAX, 'the queue is over its bound');
  for (const waiting of system.queue) {
    const cluster = system.clusters[waiting.clusterid];
    check(
      cluster?.closing === false,
      `request ${waiting.requestId} waits for a cluster that is gone or closing`,
    );
  }
  for (const cluster of Object.values(system.clusters)) {
    const name = `cluster ${cluster.clusterid}`;
    check(cluster.clusterid < system.nextClusterid, `${name}: its id may be given out again`);
    check(cluster.past.length <= PAST_TICKETS_MAX, `${name}: remembers too many tickets`);
    check(cluster.closing || cluster.vms[0] !== undefined, `${name}: has no master VM`);
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
            (each.ticket === null || each.ticket === vm.ticket),
        );
        check(open, `${name}: vmid ${vm.vmid} is destroyed and no host was asked to clean up`);
      } else if (vm.vmid !== 0)
        check(ticket?.vmids.includes(vm.vmid) === true, `${name}: vmid ${vm.vmid} belongs to no ticket`);
    }
    for (const ticket of Object.values(cluster.tickets)) {
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
      system.clusters[cleanup.clusterid] !== undefined,
      `cleanup for cluster ${cleanup.clusterid}, which is forgotten`,
    );
  return wrong;
}
