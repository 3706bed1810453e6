import { describe, expect, it } from 'vitest';
import { DEFAULT_LIMITS, systemState, type Limits } from '../src/index.ts';
import { World } from './world.ts';

const limited = (limits: Partial<Limits>, options: { hosts?: number; ramMib?: number } = {}): World => {
  const world = new World({ hosts: 2, cpus: 8, ...options });
  world.system.limits = { ...DEFAULT_LIMITS, forkReservePercent: 0, ...limits };
  return world;
};
const freeMib = (world: World): number[] =>
  systemState(world.system).hosts.map((host) => host.ramFreeBytes / 2 ** 20);

describe('limits, each with an error that names its setting', () => {
  it('clusters', () => {
    const world = limited({ clusters: 2 });
    world.seed();
    world.seed();
    expect(() => world.seed()).toThrow(
      "there are 2 clusters, as many as sfmd's configuration allows (max_clusters)",
    );
    world.do({ type: 'shutdown', clusterid: 0, force: false, byGuest: false });
    world.clean();
    expect(world.seed()).toBe(2);
  });

  it('VMs of a cluster: what is left is granted, then nothing; what can never be is refused to who waits', () => {
    const world = limited({ vmsPerCluster: 4 });
    const clusterid = world.seed();
    expect(() => world.request(clusterid, 4, { min: -1, block: true })).toThrow('room for 3');
    expect(world.request(clusterid, 9)).toMatchObject({ allowed: 3 });
    expect(() => world.request(clusterid, 1)).toThrow(
      "has 4 VMs, the most that sfmd's configuration allows (vms_per_cluster)",
    );
    expect(world.request(clusterid, 1, { block: true, requestId: 'w' })).toBeUndefined();
    world.do({ type: 'merge-all', clusterid });
    world.clean();
    expect(world.grants.get('w')).toMatchObject({ allowed: 1 });
  });

  it('VMs of a host', () => {
    const world = limited({ vmsPerHost: 2 });
    const clusterid = world.seed();
    expect(world.request(clusterid, 9)).toMatchObject({ allowed: 3 });
    expect(systemState(world.system).hosts.map((host) => host.vms)).toEqual([2, 2]);
  });

  it('tickets of a cluster, and requests that wait', () => {
    const world = limited({ ticketsPerCluster: 1, blockedRequests: 1 });
    const [clusterid, other] = [world.seed(), world.seed()];
    world.ticket(clusterid, 1);
    expect(() => world.request(clusterid, 1)).toThrow('(tickets_per_cluster); merge or dispose some');
    world.ticket(other, 13);
    const third = limited({ blockedRequests: 1 });
    const only = third.seed();
    third.ticket(only, 15);
    third.request(only, 1, { block: true });
    expect(() => third.request(only, 1, { block: true })).toThrow('(blocked_requests)');
  });
});

describe('memory for frozen images', () => {
  it("is held on the master VM's host from the grant until that host has confirmed the end", () => {
    const world = limited({ forkReservePercent: 50 }, { hosts: 1, ramMib: 2048 });
    const clusterid = world.seed({ memoryMib: 512 });
    const ticket = world.ticket(clusterid, 1);
    expect(freeMib(world)).toEqual([2048 - 512 - 512 - 256]);
    world.do({ type: 'redeem', clusterid, ticket });
    world.do({ type: 'merge', clusterid, ticket });
    expect(freeMib(world)).toEqual([2048 - 512 - 512 - 256]);
    world.clean();
    expect(freeMib(world)).toEqual([2048 - 512]);
  });

  it('is never promised twice: a fork that has no room for it is not granted', () => {
    const world = limited({ forkReservePercent: 100 }, { hosts: 2, ramMib: 1024 });
    const clusterid = world.seed({ memoryMib: 512 });
    expect(world.request(clusterid, 5)).toMatchObject({ allowed: 2 });
    expect(freeMib(world).sort()).toEqual([0, 0]);
    expect(world.request(clusterid, 1)).toMatchObject({ allowed: 0 });
    const alone = limited({ forkReservePercent: 100 }, { hosts: 1, ramMib: 1024 });
    const large = alone.seed({ memoryMib: 600 });
    expect(() => alone.request(large, 1, { min: -1, block: true })).toThrow('1 clones will never fit');
  });
});
