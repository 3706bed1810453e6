// Clones that fork: who may ask for what, and what ends with whom.

import { describe, expect, it } from 'vitest';
import { isEnded, systemState, ticketInfo, ticketList, type Effect } from '../src/index.ts';
import { codeOf, World } from './world.ts';

/** A master VM (0) with clones 1 and 2, clone 1 with 3 and 4, clone 3 with 5. */
function grown(options: { hosts?: number; ramMib?: number } = {}) {
  const world = new World({ hosts: 3, ...options });
  const clusterid = world.seed();
  const tickets = [
    world.fork(clusterid, 2),
    world.fork(clusterid, 2, 1),
    world.fork(clusterid, 1, 3),
  ] as const;
  return { world, clusterid, tickets };
}

const alive = (world: World, clusterid: number): number[] =>
  Object.values(world.system.clusters[clusterid]?.vms ?? {}).flatMap((vm) => (isEnded(vm) ? [] : [vm.vmid]));
const ticketsEnded = (effects: readonly Effect[]): string[] =>
  effects.flatMap((effect) => (effect.type === 'ticket-ended' ? [effect.ticket] : []));

describe('a VM and the tickets of others', () => {
  it('lists, redeems, disposes and merges its own only', () => {
    const { world, clusterid, tickets } = grown();
    const [first, second] = tickets;
    expect(ticketList(world.system, { clusterid, by: 1 })).toEqual({ unused: [], outstanding: [second] });
    expect(ticketList(world.system, { clusterid }).outstanding).toEqual([...tickets]);
    const unused = world.ticket(clusterid, 1, 4);
    for (const by of [0, 1, 2, 5])
      for (const type of ['redeem', 'merge', 'dispose'] as const)
        expect(codeOf(() => world.do({ type, clusterid, ticket: unused, by }))).toBe('not-owner');
    expect(codeOf(() => world.do({ type: 'merge', clusterid, ticket: first, by: 1 }))).toBe('not-owner');
    world.do({ type: 'dispose', clusterid, ticket: unused, by: 4 });
    expect(() => world.do({ type: 'merge', clusterid, ticket: second, by: 4 })).toThrow(
      `ticket ${second} is one of VM ${clusterid}:1; VM ${clusterid}:4 may only use its own`,
    );
  });

  it('reads the map of its own, and of the one that it was made with', () => {
    const { world, clusterid, tickets } = grown();
    const read = (by: number, ticket: string) => () => ticketInfo(world.system, { clusterid, ticket, by });
    expect(read(1, tickets[1])().clones.map(({ vmid }) => vmid)).toEqual([3, 4]);
    expect(read(4, tickets[1])().clones).toHaveLength(2);
    expect(codeOf(read(0, tickets[1]))).toBe('not-owner');
    expect(codeOf(read(5, tickets[1]))).toBe('not-owner');
  });

  it('asks for none when it has ended', () => {
    const { world, clusterid } = grown();
    world.do({ type: 'vm-ended', clusterid, vmid: 2, ended: { how: 'exited', reason: 'ic_exit' } });
    expect(codeOf(() => world.request(clusterid, 1, { by: 2 }))).toBe('no-such-vm');
    expect(codeOf(() => world.request(clusterid, 1, { by: 99 }))).toBe('no-such-vm');
  });

  it('merges all of its own with one call, and leaves those of others', () => {
    const { world, clusterid, tickets } = grown();
    expect(ticketsEnded(world.do({ type: 'merge-all', clusterid, by: 1 }))).toEqual([tickets[2], tickets[1]]);
    expect(alive(world, clusterid)).toEqual([0, 1, 2]);
    expect(ticketList(world.system, { clusterid }).outstanding).toEqual([tickets[0]]);
  });
});

describe('the end of a VM in the middle', () => {
  it.each([
    ['it exits', { type: 'vm-ended', vmid: 1, ended: { how: 'exited', reason: 'ic_exit' } }],
    ['it is lost', { type: 'vm-ended', vmid: 1, ended: { how: 'lost', reason: 'killed' } }],
  ] as const)('takes all below it along: %s', (_, command) => {
    const { world, clusterid, tickets } = grown();
    world.request(clusterid, 8, { by: 3, block: true, min: -1, requestId: 'of-3' });
    const effects = world.do({ ...command, clusterid });
    expect(ticketsEnded(effects)).toEqual([tickets[2], tickets[1]]);
    expect(world.grants.get('of-3')).toBe('refused');
    expect(alive(world, clusterid)).toEqual([0, 2]);
    const hosts = new Set(effects.flatMap((effect) => (effect.type === 'clean-up' ? [effect.host] : [])));
    expect(hosts.size).toBeGreaterThan(0);
    world.clean();
    world.do({ type: 'merge-all', clusterid });
    world.clean();
    const shape = 256 * 2 ** 20;
    const used = systemState(world.system).hosts.map((host) => host.ramBytes - host.ramFreeBytes);
    expect(used.reduce((sum, bytes) => sum + bytes, 0)).toBe(shape);
  });

  it('also when its host goes silent, and its waiting request is refused so that the next is served', () => {
    const world = new World({ hosts: 2, cpus: 3 });
    const clusterid = world.seed();
    world.fork(clusterid, 1);
    const master = world.system.clusters[clusterid]?.vms[0]?.host;
    const host = world.system.clusters[clusterid]?.vms[1]?.host ?? '';
    expect(host).not.toBe(master);
    const second = world.fork(clusterid, 1, 1);
    world.request(clusterid, 4, { by: 1, block: true, min: -1, requestId: 'first' });
    world.request(clusterid, 1, { block: true, min: -1, requestId: 'next' });
    expect(world.grants.get('next')).toBeUndefined();
    world.nowMs = 100_000;
    world.report(master ?? '');
    const effects = world.do({ type: 'tick', nowMs: world.nowMs });
    expect(ticketsEnded(effects)).toEqual([second]);
    expect(world.grants.get('first')).toBe('refused');
    expect(world.grants.get('next')).toMatchObject({ allowed: 1 });
  });

  it('ends a fork that had not been reported, and what its clones had done already', () => {
    const world = new World({ hosts: 2 });
    const clusterid = world.seed();
    const ticket = world.ticket(clusterid, 2);
    world.do({ type: 'redeem', clusterid, ticket });
    // Clone 1 runs and asks before its parent's host has reported the launch.
    const sub = world.fork(clusterid, 1, 1);
    const report = {
      clones: [
        { vmid: 1, ok: false, reason: 'its network' },
        { vmid: 2, ok: true },
      ],
    };
    expect(ticketsEnded(world.do({ type: 'launched', clusterid, ticket, report }))).toEqual([sub]);
    expect(alive(world, clusterid)).toEqual([0, 2]);
  });
});

describe('memory for the frozen image of a clone', () => {
  it("is held on the clone's host, until that host has confirmed the end", () => {
    const world = new World({ hosts: 2, cpus: 2, ramMib: 4096 });
    const clusterid = world.seed({ memoryMib: 512 });
    world.fork(clusterid, 1);
    const host = world.system.clusters[clusterid]?.vms[1]?.host ?? '';
    const free = (): number => {
      const found = systemState(world.system).hosts.find((each) => each.host === host);
      return (found?.ramFreeBytes ?? 0) / 2 ** 20;
    };
    const before = free();
    const ticket = world.ticket(clusterid, 1, 1);
    const here = world.system.clusters[clusterid]?.vms[2]?.host === host ? 512 : 0;
    expect(free()).toBe(before - 128 - here);
    world.do({ type: 'dispose', clusterid, ticket });
    expect(free()).toBe(before - 128 - here);
    world.clean();
    expect(free()).toBe(before);
  });

  it('and what will never fit beside the whole line of a VM is refused to who waits', () => {
    const world = new World({ hosts: 1, cpus: 8, ramMib: 1024 });
    const clusterid = world.seed({ memoryMib: 256 });
    world.fork(clusterid, 1);
    // Two VMs with an image each: 640 MiB.
    expect(() => world.request(clusterid, 2, { by: 1, block: true, min: -1 })).toThrow('have room for 1');
    expect(world.request(clusterid, 1, { by: 1, block: true, min: -1 })).toMatchObject({ allowed: 1 });
  });
});

it('rolls back a fork of a clone whose sfld was restarted in the middle of it', () => {
  const world = new World({ hosts: 3 });
  const clusterid = world.seed();
  world.fork(clusterid, 2);
  const host = world.system.clusters[clusterid]?.vms[1]?.host ?? '';
  const names = Object.values(world.system.clusters[clusterid]?.vms ?? {})
    .filter((vm) => vm.host === host)
    .map((vm) => `${clusterid}:${vm.vmid}`);
  world.report(host, 'a', names);
  const ticket = world.ticket(clusterid, 1, 1);
  world.do({ type: 'redeem', clusterid, ticket, by: 1 });
  expect(ticketsEnded(world.report(host, 'b', names))).toEqual([ticket]);
  const again = world.ticket(clusterid, 1, 1);
  const effects = world.report(host, 'c', names);
  const { vmids = [] } = world.system.clusters[clusterid]?.tickets[again] ?? {};
  const targets = vmids.map((vmid) => world.system.clusters[clusterid]?.vms[vmid]?.host);
  expect(effects).toContainEqual({
    type: 'prepare-source',
    clusterid,
    vmid: 1,
    ticket: again,
    host,
    targets,
  });
});
