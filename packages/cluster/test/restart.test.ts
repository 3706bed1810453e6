import { describe, expect, it } from 'vitest';
import {
  hostUsage,
  LAUNCH_REPORT_AFTER_MS,
  systemState,
  UNCLAIMED_AFTER_MS,
  type Effect,
  type HostCapacity,
} from '../src/index.ts';
import { codeOf, World } from './world.ts';

const capacities = (world: World): HostCapacity[] =>
  Object.values(world.system.hosts).map(({ host, cpus, ramBytes }) => ({ host, cpus, ramBytes }));
const restart = (world: World, hosts = capacities(world)): Effect[] =>
  world.do({ type: 'restarted', hosts, clusterid: 0, nowMs: (world.nowMs = 0), unixMs: 0 });
const types = (effects: readonly Effect[]): string[] => effects.map((effect) => effect.type);

describe('what was half done when sfmd ended', () => {
  it('a start of a master VM is rolled back', () => {
    const world = new World({ hosts: 1 });
    world.do({ type: 'seed', shape: { diskImage: 'x', vcpus: 1, memoryMib: 256 } });
    expect(types(restart(world))).toContain('clean-up');
    world.clean();
    expect(world.system.clusters).toEqual({});
    expect(world.seed()).toBe(1);
  });

  it('preparations and cleanups are asked for again', () => {
    const world = new World({ hosts: 2 });
    const clusterid = world.seed();
    const gone = world.ticket(clusterid, 1);
    world.do({ type: 'dispose', clusterid, ticket: gone });
    const ticket = world.ticket(clusterid, 4);
    const hosts = Object.keys(world.system.hosts);
    world.do({
      ...{ type: 'prepared', clusterid, ticket, host: hosts[0] ?? '' },
      part: 'clones',
      error: null,
    });
    const effects = restart(world);
    expect(effects.filter((effect) => effect.type === 'prepare-clones').map(({ host }) => host)).toEqual([
      hosts[1],
    ]);
    expect(types(effects)).toContain('prepare-source');
    expect(effects.filter((effect) => effect.type === 'clean-up')).toHaveLength(world.system.cleanups.length);
  });

  it('a grant whose answer was lost is given again to who asks again, and given back when nobody does', () => {
    const world = new World({ hosts: 1 });
    const clusterid = world.seed();
    const grant = world.request(clusterid, 1, { requestId: 'r' });
    const second = world.ticket(clusterid, 1);
    restart(world);
    expect(world.request(clusterid, 1, { requestId: 'r' })).toEqual(grant);
    const ticket = grant !== 'refused' ? (grant?.ticket ?? '') : '';
    world.do({ type: 'delivered', clusterid, ticket });
    world.do({ type: 'tick', nowMs: UNCLAIMED_AFTER_MS + 1 });
    expect(Object.keys(world.system.clusters[clusterid]?.tickets ?? {})).toEqual([ticket]);
    expect(second).not.toBe(ticket);
  });

  it('who waited in line keeps the place until it has not asked again for a minute', () => {
    const world = new World({ hosts: 1, cpus: 2 });
    const clusterid = world.seed();
    const ticket = world.fork(clusterid, 1);
    for (const requestId of ['gone', 'first', 'second'])
      world.request(clusterid, 1, { block: true, requestId });
    restart(world);
    world.request(clusterid, 1, { block: true, requestId: 'second' });
    world.request(clusterid, 1, { block: true, requestId: 'first' });
    world.report('h0');
    world.do({ type: 'tick', nowMs: UNCLAIMED_AFTER_MS + 1 });
    expect(world.system.queue.map((each) => each.requestId)).toEqual(['first', 'second']);
    world.nowMs = UNCLAIMED_AFTER_MS + 1;
    world.report('h0');
    world.do({ type: 'merge', clusterid, ticket });
    world.clean();
    expect(world.grants.get('first')).toMatchObject({ allowed: 1 });
  });

  it('a fork is redeemed again by the same caller only, and rolled back when nobody reports it', () => {
    const world = new World({ hosts: 1 });
    const clusterid = world.seed();
    const ticket = world.ticket(clusterid, 2);
    world.do({ type: 'redeem', clusterid, ticket, redemption: 'mine' });
    restart(world);
    expect(world.do({ type: 'redeem', clusterid, ticket, redemption: 'mine' })).toEqual([]);
    expect(codeOf(() => world.do({ type: 'redeem', clusterid, ticket, redemption: 'other' }))).toBe(
      'ticket-used',
    );
    world.nowMs = LAUNCH_REPORT_AFTER_MS;
    world.report('h0');
    world.do({ type: 'tick', nowMs: LAUNCH_REPORT_AFTER_MS });
    expect(Object.keys(world.system.clusters[clusterid]?.tickets ?? {})).toEqual([ticket]);
    const effects = world.do({ type: 'tick', nowMs: LAUNCH_REPORT_AFTER_MS + 1 });
    expect(types(effects)).toEqual(['vm-ended', 'vm-ended', 'ticket-ended', 'clean-up']);
    const report = { clones: [1, 2].map((vmid) => ({ vmid, ok: true })) };
    expect(codeOf(() => world.do({ type: 'launched', clusterid, ticket, report }))).toBe('ticket-used');
  });
});

describe('a configuration that has changed', () => {
  it('a host that is gone from it: its VMs are lost, what they held is free, clusters of its master VMs end', () => {
    const world = new World({ hosts: 3, cpus: 4 });
    const clusterid = world.seed();
    const ticket = world.fork(clusterid, 6);
    const master = world.system.clusters[clusterid]?.vms[0]?.host ?? '';
    const [away = ''] = Object.keys(world.system.hosts).filter((host) => host !== master);
    const effects = restart(
      world,
      capacities(world).filter(({ host }) => host !== away),
    );
    const lost = effects.filter((effect) => effect.type === 'vm-ended');
    expect(lost.map((effect) => effect.reason)).toEqual(
      Array(lost.length).fill(`host ${away} was removed from cluster_hosts`),
    );
    expect(lost).toHaveLength(2);
    expect(systemState(world.system).clusters[0]?.tickets.map((each) => each.ticket)).toEqual([ticket]);
    world.do({ type: 'merge', clusterid, ticket });
    world.clean();
    expect([...hostUsage(world.system).values()].reduce((sum, used) => sum + used.cpus, 0)).toBe(1);
    restart(
      world,
      capacities(world).filter(({ host }) => host !== master),
    );
    world.clean();
    expect(world.system.clusters).toEqual({});
    expect(codeOf(() => world.report(master))).toBe('bad-request');
  });

  it('a host that became smaller keeps what it has and gets nothing more; a new one is used', () => {
    const world = new World({ hosts: 1, cpus: 4 });
    const clusterid = world.seed();
    world.fork(clusterid, 3);
    restart(world, [
      { host: 'h0', cpus: 2, ramBytes: 2 ** 32 },
      { host: 'new', cpus: 1, ramBytes: 2 ** 32 },
    ]);
    expect(world.request(clusterid, 1)).toMatchObject({ allowed: 0 });
    world.report('new');
    expect(world.request(clusterid, 5)).toMatchObject({ allowed: 1 });
  });
});
