import { describe, expect, it } from 'vitest';
import { hostUsage, systemState, ticketList, VM_MISSING_AFTER_MS, vmsOf } from '../src/index.ts';
import { codeOf, World } from './world.ts';

/** One cluster, its master VM on one host two clones beside it and two on the other. */
function forked() {
  const world = new World({ hosts: 2, cpus: 3 });
  const clusterid = world.seed();
  const master = world.system.clusters[clusterid]?.vms[0]?.host ?? '';
  const other = master === 'h0' ? 'h1' : 'h0';
  world.report(master, 'm1', ['0:0']);
  world.report(other, 'o1', []);
  const ticket = world.fork(clusterid, 4);
  const at = (host: string): string[] =>
    vmsOf(world.system.clusters[clusterid] ?? fail()).flatMap((vm) =>
      vm.host === host ? [`${clusterid}:${vm.vmid}`] : [],
    );
  const statuses = (host: string): string[] =>
    vmsOf(world.system.clusters[clusterid] ?? fail()).flatMap((vm) => (vm.host === host ? [vm.status] : []));
  return { world, clusterid, ticket, master, other, at, statuses };
}
function fail(): never {
  throw new Error('the cluster is gone');
}

describe('a report that lists VMs', () => {
  it('of a new instance that has adopted them all changes nothing', () => {
    const { world, master, other, at } = forked();
    const before = structuredClone(world.system.clusters);
    expect(world.report(master, 'm2', at(master))).toEqual([]);
    expect(world.report(other, 'o2', at(other))).toEqual([]);
    expect(world.system.clusters).toEqual(before);
  });

  it('of a new instance loses what is not in it, and frees it when the host has confirmed', () => {
    const { world, clusterid, ticket, other, at, statuses } = forked();
    const [kept = '', gone = ''] = at(other);
    const effects = world.report(other, 'o2', [kept]);
    const reasons = effects.flatMap((effect) =>
      effect.type === 'vm-ended' ? `${effect.clusterid}:${effect.vmid} ${effect.reason}` : [],
    );
    expect(reasons).toEqual([`${gone} host ${other} no longer has it since it is back`]);
    expect(statuses(other).sort()).toEqual(['lost', 'running']);
    expect(hostUsage(world.system).get(other)?.cpus).toBe(2);
    world.clean();
    expect(hostUsage(world.system).get(other)?.cpus).toBe(1);
    expect(ticketList(world.system, { clusterid }).outstanding).toEqual([ticket]);
    world.do({ type: 'merge', clusterid, ticket });
    world.clean();
    expect(
      systemState(world.system)
        .hosts.map((host) => host.cpusFree)
        .sort(),
    ).toEqual([2, 3]);
  });

  it('ends the cluster whose master VM the new instance does not have', () => {
    const { world, master } = forked();
    world.report(master, 'm2', []);
    world.clean();
    expect(world.system.clusters).toEqual({});
  });

  it('of the same instance is believed only after a while: the VM may be younger than the report', () => {
    const { world, other, at, statuses } = forked();
    const [kept = ''] = at(other);
    world.report(other, 'o1', [kept]);
    world.nowMs += VM_MISSING_AFTER_MS - 1;
    world.report(other, 'o1', [kept]);
    expect(statuses(other)).toEqual(['running', 'running']);
    world.report(other, 'o1', at(other));
    world.nowMs += 2;
    world.report(other, 'o1', [kept]);
    expect(statuses(other)).toEqual(['running', 'running']);
    world.nowMs += VM_MISSING_AFTER_MS;
    world.report(other, 'o1', [kept]);
    expect(statuses(other).sort()).toEqual(['lost', 'running']);
  });

  it('after silence: the master VM is back, clones that were reported lost are destroyed and free', () => {
    const { world, clusterid, master, other, at, statuses } = forked();
    const [here, there] = [at(master), at(other)];
    world.do({ type: 'tick', nowMs: 60_000 });
    expect([...statuses(master), ...statuses(other)]).toEqual(Array(5).fill('lost'));
    world.nowMs = 60_000;
    world.report(master, 'm1', here);
    world.report(other, 'o1', there);
    expect(world.system.clusters[clusterid]?.vms[0]?.status).toBe('running');
    expect(world.system.cleanups.map((each) => each.vmid).sort()).toEqual([1, 2, 3, 4]);
    world.clean();
    expect(
      systemState(world.system)
        .hosts.map((host) => host.cpusFree)
        .sort(),
    ).toEqual([2, 3]);
    expect(world.report(other, 'o1', [])).toEqual([]);
  });

  it('has what nobody knows destroyed, and never gives out its clusterid', () => {
    const { world, master, clusterid } = forked();
    const mine = vmsOf(world.system.clusters[clusterid] ?? fail())
      .filter((vm) => vm.host === master)
      .map((vm) => `${clusterid}:${vm.vmid}`);
    const effects = world.report(master, 'm1', [...mine, '77:0', '77:3', `${clusterid}:900`]);
    expect(effects).toEqual([
      { type: 'clean-up', host: master, clusterid: 77, ticket: null, vmid: null },
      { type: 'clean-up', host: master, clusterid, ticket: null, vmid: 900 },
    ]);
    world.clean();
    expect(world.system.cleanups).toEqual([]);
    expect(world.seed({ memoryMib: 32 })).toBe(78);
  });

  it('is refused as a whole when it names what cannot be', () => {
    const { world, master } = forked();
    expect(codeOf(() => world.report(master, 'm9', ['16777215:1']))).toBe('bad-request');
    expect(codeOf(() => world.report(master, 'm9', ['0:65534']))).toBe('bad-request');
  });
});
