// A VM on its way to another host, as sfmd sees it: what it holds where, what moves with it, and every way that it can end.

import { beforeEach, describe, expect, it } from 'vitest';
import { hostUsage, movingOf, type Effect } from '../src/index.ts';
import { codeOf, World } from './world.ts';

const MIB = 1 << 20;
const MEMORY_MIB = 256;

describe('migration', () => {
  let world: World;
  let clusterid: number;
  let from: string;
  let to: string;

  beforeEach(() => {
    world = new World({ hosts: 3, cpus: 4, ramMib: 2048 });
    clusterid = world.seed();
    from = vm().host;
    to = ['h0', 'h1', 'h2'].find((host) => host !== from) ?? '';
  });

  const cluster = () => world.system.clusters[clusterid] ?? expect.fail('the cluster is gone');
  const vm = (vmid = 0) => cluster().vms[vmid] ?? expect.fail(`there is no VM ${vmid}`);
  const used = (host: string) => hostUsage(world.system).get(host);

  function migrate(
    vmid: number,
    host: string,
  ): { ticket: string; effect: Extract<Effect, { type: 'migrate' }> } {
    const ticket = world.id();
    const [effect] = world.do({ type: 'migrate', clusterid, vmid, host, ticket });
    if (effect?.type !== 'migrate') throw new Error('nobody was asked to migrate it');
    return { ticket, effect };
  }

  const refusal = (vmid: number, host: string): string => codeOf(() => migrate(vmid, host));

  it('holds what it needs on both hosts, then its memory on the one that it has left, until that has confirmed', () => {
    const { ticket, effect } = migrate(0, to);
    expect(effect).toMatchObject({ clusterid, vmid: 0, from, to, ticket, origin: null });
    expect(used(from)).toMatchObject({ cpus: 1, vms: 1 });
    expect(used(to)).toMatchObject({ cpus: 1, ramBytes: MEMORY_MIB * MIB, vms: 1 });
    expect(world.do({ type: 'migrated', clusterid, ticket })).toEqual([
      { type: 'vm-migrated', clusterid, vmid: 0, from, to },
    ]);
    expect(vm()).toMatchObject({ host: to, status: 'running' });
    expect(used(from)).toEqual({ cpus: 0, ramBytes: MEMORY_MIB * MIB, vms: 0, clones: 0 });
    expect(used(to)).toMatchObject({ cpus: 1, ramBytes: MEMORY_MIB * MIB, vms: 1 });
    expect(world.do({ type: 'migrated', clusterid, ticket })).toEqual([]);
    expect(refusal(0, from)).toBe('busy');
    expect(world.do({ type: 'migration-fetched', clusterid, ticket })).toEqual([
      { type: 'clean-up', host: from, clusterid, ticket, vmid: null },
    ]);
    world.clean();
    expect(used(from)).toMatchObject({ ramBytes: 0 });
    expect(cluster().migrations).toEqual({});
    expect(refusal(0, from)).toBe('none');
  });

  it('leaves it where it was when that fails, and frees both hosts', () => {
    const { ticket } = migrate(0, to);
    const effects = world.do({ type: 'migrate-failed', clusterid, ticket });
    expect(effects.map((effect) => effect.type === 'clean-up' && effect.host).sort()).toEqual(
      [from, to].sort(),
    );
    // Not before they have confirmed.
    expect(used(to)).toMatchObject({ vms: 1 });
    world.clean();
    expect(used(to)).toMatchObject({ vms: 0, cpus: 0, ramBytes: 0 });
    expect(vm()).toMatchObject({ host: from, status: 'running' });
    expect(codeOf(() => world.do({ type: 'migrated', clusterid, ticket }))).toBe('no-such-vm');
  });

  it('takes its tickets along: what was forked stays where it was, what was not is prepared anew', () => {
    const outstanding = world.fork(clusterid, 1);
    const unused = world.ticket(clusterid, 1);
    const { ticket } = migrate(0, to);
    const effects = world.do({ type: 'migrated', clusterid, ticket });
    expect(effects.filter(({ type }) => type === 'prepare-source')).toEqual([
      expect.objectContaining({ ticket: unused, host: to, vmid: 0 }),
    ]);
    expect(cluster().frozen[outstanding]?.host).toBe(from);
    expect(cluster().frozen[unused]?.host).toBe(to);
    // Snapshot, clones, and what they returned: wherever that is.
    const merged = world.do({ type: 'merge', clusterid, ticket: outstanding, by: 0 });
    const hosts = merged.flatMap((effect) => (effect.type === 'clean-up' ? [effect.host] : []));
    expect(hosts).toEqual(expect.arrayContaining([from, to]));
    world.clean();
    world.do({ type: 'dispose', clusterid, ticket: unused, by: 0 });
    world.clean();
  });

  it('takes a clone along, which ends with its ticket wherever it is', () => {
    const forked = world.fork(clusterid, 1);
    const [vmid = -1] = world.vmids(clusterid, forked);
    const home = vm(vmid).host;
    const elsewhere = ['h0', 'h1', 'h2'].find((host) => host !== home) ?? '';
    const { ticket, effect } = migrate(vmid, elsewhere);
    expect(effect.origin).toEqual({ ticket: forked, parentHost: from });
    world.do({ type: 'migrated', clusterid, ticket });
    const merged = world.do({ type: 'merge', clusterid, ticket: forked });
    expect(merged).toEqual(
      expect.arrayContaining([
        { type: 'clean-up', host: home, clusterid, ticket, vmid: null },
        { type: 'clean-up', host: elsewhere, clusterid, ticket: forked, vmid: null },
      ]),
    );
    world.clean();
    expect(used(elsewhere)?.ramBytes ?? 0).toBe(elsewhere === from ? MEMORY_MIB * MIB : 0);
  });

  it.each(['moving', 'moved'])('ends with its VM, and with its cluster, while it is %s', (when) => {
    const begin = (vmid: number, host: string): void => {
      const { ticket } = migrate(vmid, host);
      if (when === 'moved') world.do({ type: 'migrated', clusterid, ticket });
    };
    const [vmid = -1] = world.vmids(clusterid, world.fork(clusterid, 1));
    const elsewhere = ['h0', 'h1', 'h2'].find((host) => host !== vm(vmid).host) ?? '';
    begin(vmid, elsewhere);
    world.do({ type: 'vm-ended', clusterid, vmid, ended: { how: 'lost', reason: 'it crashed' } });
    world.clean();
    expect(cluster().migrations).toEqual({});
    begin(0, to);
    world.do({ type: 'shutdown', clusterid, force: true, byGuest: false });
    world.clean();
    expect(world.system.clusters).toEqual({});
    for (const host of ['h0', 'h1', 'h2']) expect(used(host)).toMatchObject({ cpus: 0, ramBytes: 0, vms: 0 });
  });

  it('is refused where it cannot be', () => {
    expect(refusal(0, from)).toBe('bad-request');
    expect(refusal(0, 'nowhere')).toBe('bad-request');
    expect(refusal(7, to)).toBe('no-such-vm');
    const full = world.ticket(clusterid, 11);
    expect(refusal(0, to)).toBe('no-resources');
    world.do({ type: 'dispose', clusterid, ticket: full });
    world.clean();
    migrate(0, to);
    expect(refusal(0, to)).toBe('busy');
    world.nowMs = 20_000;
    for (const host of ['h0', 'h1', 'h2']) if (host !== to) world.report(host);
    world.do({ type: 'tick', nowMs: world.nowMs });
    const other = world.seed();
    clusterid = other;
    expect(refusal(0, to)).toBe('host-down');
  });

  it('is not taken for a VM that nobody knows, or for one that is missing, while two hosts have it', () => {
    const name = `${clusterid}:0`;
    const first = world.id();
    world.report(from, first, [name]);
    world.report(to, world.id(), []);
    const { ticket } = migrate(0, to);
    expect(world.report(to, undefined, [name])).toEqual([]);
    // Its sfld was killed in the middle, and the new one has found that it has gone.
    expect(world.report(from, world.id(), []).filter(({ type }) => type === 'vm-ended')).toEqual([]);
    world.do({ type: 'migrated', clusterid, ticket });
    expect(world.report(from, undefined, [name])).toEqual([]);
    expect(world.report(to, undefined, [name])).toEqual([]);
    expect(vm()).toMatchObject({ host: to, status: 'running' });
  });

  it('is lost when neither host has it any more', () => {
    const [vmid = -1] = world.vmids(clusterid, world.fork(clusterid, 1));
    const home = vm(vmid).host;
    const elsewhere = ['h0', 'h1', 'h2'].find((host) => host !== home) ?? '';
    const instance = world.id();
    const there = home === from ? [`${clusterid}:0`] : [];
    world.report(home, instance, [...there, `${clusterid}:${vmid}`]);
    migrate(vmid, elsewhere);
    world.report(home, instance, there);
    world.nowMs += 11_000;
    world.report(home, instance, there);
    expect(vm(vmid)).toMatchObject({ status: 'lost' });
    expect(movingOf(cluster(), vmid)).toBeUndefined();
    world.clean();
  });

  it('is asked for again after a restart of sfmd', () => {
    const { ticket, effect } = migrate(0, to);
    const hosts = Object.values(world.system.hosts).map(({ host, cpus, ramBytes }) => ({
      host,
      cpus,
      ramBytes,
    }));
    const again = world.do({ type: 'restarted', hosts, clusterid: 0, nowMs: 0, unixMs: 0 });
    expect(again).toContainEqual(effect);
    world.do({ type: 'migrated', clusterid, ticket });
    expect(world.do({ type: 'restarted', hosts, clusterid: 0, nowMs: 0, unixMs: 0 })).not.toContainEqual(
      effect,
    );
  });
});
