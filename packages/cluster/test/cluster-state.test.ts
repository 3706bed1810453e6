import { describe, expect, it } from 'vitest';
import {
  hostUsage,
  isJoinable,
  isPrepared,
  redemption,
  systemState,
  ticketInfo,
  ticketList,
} from '../src/index.ts';
import { codeOf, World } from './world.ts';

const free = (world: World): number[] => systemState(world.system).hosts.map((host) => host.cpusFree);
const statusOf = (world: World, clusterid: number, vmid: number) =>
  world.system.clusters[clusterid]?.vms[vmid]?.status;

describe('seeding', () => {
  it('numbers clusters from the configured one, never again the same', () => {
    const world = new World({ hosts: 1, clusterid: 2000 });
    expect(world.seed()).toBe(2000);
    world.do({ type: 'shutdown', clusterid: 2000, force: false, byGuest: false });
    world.clean();
    expect(world.system.clusters).toEqual({});
    expect(world.seed()).toBe(2001);
  });

  it('says why there is no room', () => {
    const world = new World({ hosts: 2, cpus: 2, ramMib: 512 });
    expect(() => world.seed({ memoryMib: 1024 })).toThrow('the most that one has is 2 cpus and 512 MiB');
    world.seed({ vcpus: 2 });
    world.seed({ vcpus: 2 });
    expect(() => world.seed()).toThrow('no host has room for a VM with 1 vcpus and 256 MiB at the moment');
    const dark = new World({ hosts: 1 });
    dark.do({ type: 'tick', nowMs: 60_000 });
    expect(() => dark.seed()).toThrow('is up; start sfld on h0');
  });

  it('leaves nothing when the master VM cannot be started', () => {
    const world = new World({ hosts: 1 });
    world.do({ type: 'seed', shape: { diskImage: 'x', vcpus: 1, memoryMib: 256 } });
    world.do({ type: 'master-failed', clusterid: 0, reason: 'no such image' });
    expect(free(world)).toEqual([3]);
    world.clean();
    expect([free(world), world.system.clusters]).toEqual([[4], {}]);
  });
});

describe('what min and block mean', () => {
  const setup = (): { world: World; clusterid: number } => {
    const world = new World({ hosts: 2, cpus: 2 });
    return { world, clusterid: world.seed() };
  };

  it.each([
    [{ min: 0 }, 3],
    [{ min: 3 }, 3],
    [{ min: 4 }, 0],
    [{ min: -1 }, 3],
    [{ min: 0, block: true }, 3],
    [{ min: 3, block: true }, 3],
  ])('5 clones where 3 fit, %j: %i', (options, allowed) => {
    const { world, clusterid } = setup();
    const grant = world.request(clusterid, 5, options);
    expect(grant).toMatchObject({ allowed });
    expect(grant !== 'refused' && grant?.ticket === null).toBe(allowed === 0);
  });

  it('refuses at once what can never be', () => {
    const { world, clusterid } = setup();
    expect(codeOf(() => world.request(clusterid, 5, { min: -1, block: true }))).toBe('no-resources');
    expect(() => world.request(clusterid, 5, { min: 4, block: true })).toThrow(
      'all hosts together have room for 3',
    );
    expect(codeOf(() => world.request(clusterid, 5, { min: 6 }))).toBe('bad-request');
    expect(codeOf(() => world.request(7, 1))).toBe('no-such-cluster');
  });

  it('waits for all of it with min < 0, for one with min 0', () => {
    const { world, clusterid } = setup();
    const ticket = world.fork(clusterid, 2);
    expect(world.request(clusterid, 3, { min: -1, block: true, requestId: 'all' })).toBeUndefined();
    expect(world.request(clusterid, 1, { min: 0 })).toEqual({ ticket: null, allowed: 0 });
    expect(world.request(clusterid, 1, { block: true, requestId: 'one' })).toBeUndefined();
    world.do({ type: 'merge', clusterid, ticket });
    expect(world.grants.has('all')).toBe(false);
    world.clean();
    expect(world.grants.get('all')).toMatchObject({ allowed: 3 });
    expect(world.grants.has('one')).toBe(false);
  });

  it('forgets a blocked request whose caller went away', () => {
    const { world, clusterid } = setup();
    world.fork(clusterid, 2);
    world.request(clusterid, 3, { min: -1, block: true, requestId: 'gone' });
    world.request(clusterid, 1, { block: true, requestId: 'next' });
    world.do({ type: 'cancel-request', requestId: 'gone' });
    expect(world.grants.get('next')).toMatchObject({ allowed: 1 });
    expect(world.system.queue).toEqual([]);
  });

  it('counts processors with procs', () => {
    const world = new World({ hosts: 2, cpus: 16 });
    const clusterid = world.seed({ vcpus: 8 });
    const grant = world.request(clusterid, 11, { procs: true });
    expect(grant).toMatchObject({ allowed: 11 });
    const ticket = grant !== 'refused' ? (grant?.ticket ?? '') : '';
    expect(ticketInfo(world.system, { clusterid, ticket }).clones.map((clone) => clone.processors)).toEqual([
      8, 3,
    ]);
  });
});

describe('the life of a ticket', () => {
  it('goes unused, outstanding, merged; its resources come free when the hosts confirm', () => {
    const world = new World({ hosts: 2, cpus: 2 });
    const clusterid = world.seed();
    const ticket = world.ticket(clusterid, 3);
    expect(ticketList(world.system, { clusterid })).toEqual({ unused: [ticket], outstanding: [] });
    const prepare = world.log.filter((effect) => effect.type === 'prepare-clones');
    expect(prepare.flatMap((effect) => effect.clones.map((clone) => clone.vmid)).sort()).toEqual([1, 2, 3]);
    expect(codeOf(() => world.do({ type: 'merge', clusterid, ticket }))).toBe('ticket-unused');
    world.do({ type: 'redeem', clusterid, ticket });
    expect(redemption(world.system, { clusterid, ticket }).clones).toHaveLength(3);
    expect(codeOf(() => world.do({ type: 'redeem', clusterid, ticket }))).toBe('ticket-used');
    expect(codeOf(() => world.do({ type: 'dispose', clusterid, ticket }))).toBe('ticket-used');
    world.do({
      type: 'launched',
      clusterid,
      ticket,
      report: { clones: [1, 2, 3].map((vmid) => ({ vmid, ok: true })) },
    });
    expect(ticketList(world.system, { clusterid })).toEqual({ unused: [], outstanding: [ticket] });
    for (const vmid of [1, 2, 3]) {
      expect(isJoinable(world.system, { clusterid, ticket })).toBe(false);
      world.do({ type: 'vm-ended', clusterid, vmid, ended: { how: 'exited', reason: '' } });
    }
    expect(isJoinable(world.system, { clusterid, ticket })).toBe(true);
    expect(free(world)).toEqual([0, 0]);
    world.do({ type: 'merge', clusterid, ticket });
    expect(free(world)).toEqual([0, 0]);
    world.clean();
    expect(free(world).sort()).toEqual([1, 2]);
    expect(world.do({ type: 'merge', clusterid, ticket })).toEqual([]);
    expect(codeOf(() => world.do({ type: 'redeem', clusterid, ticket }))).toBe('ticket-used');
    expect(world.ticket(clusterid, 1)).not.toBe(ticket);
    expect(world.system.clusters[clusterid]?.nextVmid).toBe(5);
  });

  it('knows disposed, unknown and foreign tickets apart', () => {
    const world = new World({ hosts: 4 });
    const [one, two] = [world.seed(), world.seed()];
    const ticket = world.ticket(one, 1);
    expect(codeOf(() => world.do({ type: 'redeem', clusterid: two, ticket }))).toBe('no-such-ticket');
    world.do({ type: 'dispose', clusterid: one, ticket });
    expect(codeOf(() => world.do({ type: 'redeem', clusterid: one, ticket }))).toBe('ticket-disposed');
    expect(codeOf(() => world.do({ type: 'dispose', clusterid: one, ticket }))).toBe('ticket-disposed');
    expect(codeOf(() => world.do({ type: 'redeem', clusterid: one, ticket: 'constructor' }))).toBe(
      'no-such-ticket',
    );
    expect(world.system.cleanups.length).toBeGreaterThan(0);
  });

  it('hands out what a failed preparation left, and nothing when all failed', () => {
    const world = new World({ hosts: 2, cpus: 2 });
    const clusterid = world.seed();
    const ticket = world.ticket(clusterid, 3);
    expect(isPrepared(world.system, { clusterid, ticket })).toBe(false);
    const vms = Object.values(world.system.clusters[clusterid]?.vms ?? {});
    const master = vms[0]?.host ?? '';
    const other = master === 'h0' ? 'h1' : 'h0';
    world.do({ type: 'prepared', clusterid, ticket, host: master, part: 'source', error: null });
    world.do({ type: 'prepared', clusterid, ticket, host: other, part: 'clones', error: 'no /dev/fuse' });
    world.do({ type: 'prepared', clusterid, ticket, host: master, part: 'clones', error: null });
    expect(isPrepared(world.system, { clusterid, ticket })).toBe(true);
    world.do({ type: 'redeem', clusterid, ticket });
    const { clones, failed } = redemption(world.system, { clusterid, ticket });
    expect(clones.map((clone) => clone.host)).toEqual([master]);
    expect(failed.map((clone) => clone.reason)).toEqual(
      Array(2).fill(`host ${other} could not prepare it: no /dev/fuse`),
    );

    const next = new World({ hosts: 1 });
    const only = next.seed();
    const bad = next.ticket(only, 1);
    next.do({ type: 'prepared', clusterid: only, ticket: bad, host: 'h0', part: 'clones', error: 'boom' });
    expect(() => next.do({ type: 'redeem', clusterid: only, ticket: bad })).toThrow('boom');
  });

  it('ends by itself when no clone could be launched', () => {
    const world = new World({ hosts: 1 });
    const clusterid = world.seed();
    const ticket = world.ticket(clusterid, 2);
    world.do({ type: 'redeem', clusterid, ticket });
    expect(
      codeOf(() =>
        world.do({ type: 'launched', clusterid, ticket, report: { clones: [{ vmid: 0, ok: true }] } }),
      ),
    ).toBe('no-such-vm');
    world.do({
      type: 'launched',
      clusterid,
      ticket,
      report: { clones: [1, 2].map((vmid) => ({ vmid, ok: false, reason: 'x' })) },
    });
    expect(ticketList(world.system, { clusterid })).toEqual({ unused: [], outstanding: [] });
    world.clean();
    expect(free(world)).toEqual([3]);
  });
});

describe('ends', () => {
  it('refuses to shut down with tickets outstanding, unless forced; the guest powers itself off', () => {
    const world = new World({ hosts: 2 });
    const clusterid = world.seed();
    const ticket = world.fork(clusterid, 2);
    expect(() => world.do({ type: 'shutdown', clusterid, force: false, byGuest: true })).toThrow(ticket);
    world.do({ type: 'merge-all', clusterid });
    world.ticket(clusterid, 1);
    world.do({ type: 'shutdown', clusterid, force: false, byGuest: true });
    world.clean();
    expect(statusOf(world, clusterid, 0)).toBe('running');
    expect(codeOf(() => world.ticket(clusterid, 1))).toBe('no-such-cluster');
    world.do({ type: 'vm-ended', clusterid, vmid: 0, ended: { how: 'powered-off', reason: '' } });
    world.clean();
    expect([world.system.clusters, free(world)]).toEqual([{}, [4, 4]]);
  });

  it('takes everything with it when forced, also who waits', () => {
    const world = new World({ hosts: 2, cpus: 2 });
    const clusterid = world.seed();
    world.fork(clusterid, 3);
    world.request(clusterid, 1, { block: true, requestId: 'w' });
    world.do({ type: 'shutdown', clusterid, force: true, byGuest: false });
    expect(world.grants.get('w')).toBe('refused');
    expect(world.system.cleanups.every((cleanup) => cleanup.ticket === null)).toBe(true);
    world.clean();
    expect([world.system.clusters, free(world)]).toEqual([{}, [2, 2]]);
  });

  it('ends a cluster with its master VM', () => {
    const world = new World({ hosts: 2 });
    const clusterid = world.seed();
    world.fork(clusterid, 2);
    world.do({ type: 'vm-ended', clusterid, vmid: 0, ended: { how: 'lost', reason: 'killed' } });
    world.clean();
    expect(world.system.clusters).toEqual({});
  });
});

describe('hosts', () => {
  it('reports the VMs of a silent host lost, holds what they have, and takes the master VM back', () => {
    const world = new World({ hosts: 2, cpus: 2 });
    const clusterid = world.seed();
    const ticket = world.fork(clusterid, 3);
    const master = world.system.clusters[clusterid]?.vms[0]?.host ?? '';
    const other = master === 'h0' ? 'h1' : 'h0';
    world.nowMs = 10_000;
    world.report(master);
    const effects = world.do({ type: 'tick', nowMs: 10_000 });
    expect(effects.map((effect) => effect.type)).toEqual(['host-down', 'vm-ended', 'vm-ended']);
    expect(world.request(clusterid, 1)).toMatchObject({ allowed: 0 });
    world.do({ type: 'merge', clusterid, ticket });
    for (const cleanup of world.system.cleanups.filter((each) => each.host === master))
      world.do({ type: 'cleaned', ...cleanup });
    expect(hostUsage(world.system).get(other)?.cpus).toBe(2);
    world.report(other);
    world.clean();
    expect(hostUsage(world.system).get(other)?.cpus).toBe(0);

    world.do({ type: 'tick', nowMs: 30_000 });
    expect(statusOf(world, clusterid, 0)).toBe('lost');
    world.nowMs = 31_000;
    world.report(master);
    expect(statusOf(world, clusterid, 0)).toBe('running');
  });

  it('knows that a restarted sfld has lost its VMs', () => {
    const world = new World({ hosts: 1 });
    world.report('h0', world.id());
    const clusterid = world.seed();
    world.report('h0');
    expect(statusOf(world, clusterid, 0)).toBe('running');
    world.report('h0', world.id());
    world.clean();
    expect(world.system.clusters).toEqual({});
    expect(codeOf(() => world.report('stranger'))).toBe('bad-request');
  });
});
