import { describe, expect, it } from 'vitest';
import type { HeldCheckpoint } from '@snowflock/protocol';
import { checkpointList, DEFAULT_LIMITS, hostUsage } from '../src/index.ts';
import { codeOf, World } from './world.ts';

const ID = '0d3f6b0a-7c1e-4a57-9d0e-3f1b2a4c5d6e';
const OTHER_ID = '1d3f6b0a-7c1e-4a57-9d0e-3f1b2a4c5d6e';
const TICKET = '2d3f6b0a-7c1e-4a57-9d0e-3f1b2a4c5d6e';
const NAME = 'warm';

function heldOf(id = ID): HeldCheckpoint {
  const shape = { diskImage: 'micro', vcpus: 1, memoryMib: 256 };
  return {
    ...{ id, name: NAME, description: '', createdAtMs: 1, vm: '0:0', shape, accel: 'tcg' },
    ...{ diskBytes: 0, presentPages: 10, sizeBytes: 50_000 },
  };
}

/** One cluster; its master VM's host, and the other one. */
function seeded() {
  const world = new World({ hosts: 2 });
  const clusterid = world.seed();
  const holder = world.system.clusters[clusterid]?.vms[0]?.host ?? '';
  const other = holder === 'h0' ? 'h1' : 'h0';
  const ask = (id = ID) =>
    world.do({
      type: 'checkpoint',
      name: NAME,
      id,
      vm: { clusterid, vmid: 0 },
      description: '',
      createdAtMs: 1,
    });
  const written = (id = ID) =>
    world.do({
      type: 'checkpoint-written',
      name: NAME,
      host: holder,
      written: { ok: true, held: heldOf(id) },
    });
  const told = (host: string, checkpoints: HeldCheckpoint[], instance: string) =>
    world.do({
      ...{ type: 'host-reported', host, nowMs: world.nowMs },
      report: { address: host, sfldPort: 1, accel: 'tcg', instance, vms: vmsAt(host), checkpoints },
    });
  const vmsAt = (host: string): string[] =>
    Object.values(world.system.clusters).flatMap((cluster) =>
      Object.values(cluster.vms).flatMap((vm) =>
        vm.host === host ? [`${cluster.clusterid}:${vm.vmid}`] : [],
      ),
    );
  const status = (): string | undefined => checkpointList(world.system)[0]?.status;
  return { world, clusterid, holder, other, ask, written, told, status };
}

describe('the registry of checkpoints', () => {
  it('has one host write it, holds memory meanwhile, and knows it when it is written', () => {
    const { world, clusterid, holder, ask, written, status } = seeded();
    const before = hostUsage(world.system).get(holder)?.ramBytes ?? 0;
    expect(ask()).toMatchObject([
      { type: 'write-checkpoint', clusterid, vmid: 0, name: NAME, id: ID, host: holder },
    ]);
    expect(hostUsage(world.system).get(holder)?.ramBytes).toBeGreaterThan(before);
    expect(codeOf(() => ask(OTHER_ID))).toBe('checkpoint-exists');
    expect(codeOf(() => world.do({ type: 'seed-checkpoint', name: NAME, ticket: TICKET }))).toBe(
      'unavailable',
    );
    expect(codeOf(() => world.do({ type: 'delete-checkpoint', name: NAME, force: false }))).toBe(
      'checkpoint-in-use',
    );
    expect(written()).toMatchObject([{ type: 'checkpoint-ready' }]);
    expect(status()).toBe('ready');
    expect(hostUsage(world.system).get(holder)?.ramBytes).toBe(before);
  });

  it('forgets one that could not be written, and one that another sfmd had asked for', () => {
    const { world, holder, ask } = seeded();
    ask();
    const written = { ok: false, id: ID, reason: 'the disk is full' } as const;
    expect(world.do({ type: 'checkpoint-written', name: NAME, host: holder, written })).toMatchObject([
      { type: 'checkpoint-failed', reason: 'the disk is full' },
    ]);
    ask(OTHER_ID);
    expect(checkpointList(world.system).length).toBe(1);
    const hosts = Object.values(world.system.hosts).map(({ host, cpus, ramBytes }) => ({
      host,
      cpus,
      ramBytes,
    }));
    world.do({ type: 'restarted', hosts, clusterid: 0, nowMs: 0, unixMs: 0 });
    expect(checkpointList(world.system)).toEqual([]);
    const late = { ok: true, held: heldOf(OTHER_ID) } as const;
    world.do({ type: 'checkpoint-written', name: NAME, host: holder, written: late });
    expect(checkpointList(world.system)).toMatchObject([{ id: OTHER_ID, status: 'ready', host: holder }]);
  });

  it('starts clusters from it, and keeps it while one is there', () => {
    const { world, holder, ask, written } = seeded();
    ask();
    written();
    const [start] = world.do({ type: 'seed-checkpoint', name: NAME, ticket: TICKET });
    if (start?.type !== 'start-master') throw new Error('no VM was started');
    const { clusterid, host } = start;
    expect(start).toMatchObject({
      shape: heldOf().shape,
      checkpoint: { id: ID, host: holder, ticket: TICKET },
    });
    expect(codeOf(() => world.do({ type: 'delete-checkpoint', name: NAME, force: true }))).toBe(
      'checkpoint-in-use',
    );
    world.do({ type: 'master-started', clusterid, diskBytes: 0 });
    const ends = world.do({ type: 'shutdown', clusterid, force: true, byGuest: false });
    const cleaned = ends.flatMap((effect) => (effect.type === 'clean-up' ? [effect] : []));
    expect(cleaned.map((effect) => effect.host).sort()).toEqual([...new Set([holder, host])].sort());
    for (const { type: _type, ...cleanup } of cleaned) {
      expect(checkpointList(world.system)[0]?.usedBy).toEqual([clusterid]);
      world.do({ type: 'cleaned', ...cleanup });
    }
    expect(checkpointList(world.system)[0]?.usedBy).toEqual([]);
    world.do({ type: 'delete-checkpoint', name: NAME, force: false });
    expect(codeOf(() => world.do({ type: 'seed-checkpoint', name: NAME, ticket: TICKET }))).toBe(
      'no-such-checkpoint',
    );
    world.do({ type: 'checkpoint-deleted', name: NAME, id: ID, kept: false });
    expect(checkpointList(world.system)).toEqual([]);
  });

  it('says when its host is down; it is forgotten by force, and is back when the host tells of it', () => {
    const { world, holder, other, ask, written, told, status } = seeded();
    ask();
    written();
    told(holder, [heldOf()], 'a');
    world.nowMs += DEFAULT_LIMITS.hostTimeoutMs + 1;
    told(other, [], 'b');
    world.do({ type: 'tick', nowMs: world.nowMs });
    expect(checkpointList(world.system)[0]?.hostUp).toBe(false);
    expect(codeOf(() => world.do({ type: 'seed-checkpoint', name: NAME, ticket: TICKET }))).toBe('host-down');
    expect(codeOf(() => world.do({ type: 'delete-checkpoint', name: NAME, force: false }))).toBe('host-down');
    world.do({ type: 'delete-checkpoint', name: NAME, force: true });
    world.do({ type: 'checkpoint-deleted', name: NAME, id: ID, kept: false });
    expect(status()).toBeUndefined();
    told(holder, [heldOf()], 'a');
    expect(status()).toBe('ready');
  });

  it('marks what a host that is back does not have any more; what it writes is given up', () => {
    const { holder, ask, written, told, status, world } = seeded();
    told(holder, [], 'a');
    ask();
    told(holder, [], 'a');
    expect(status()).toBe('writing');
    expect(told(holder, [], 'b')).toMatchObject([{ type: 'checkpoint-failed', id: ID }]);
    expect(status()).toBeUndefined();
    ask();
    written();
    told(holder, [], 'b');
    expect(status()).toBe('ready');
    told(holder, [], 'c');
    expect(status()).toBe('missing');
    expect(codeOf(() => world.do({ type: 'seed-checkpoint', name: NAME, ticket: TICKET }))).toBe(
      'no-such-checkpoint',
    );
    told(holder, [heldOf()], 'c');
    expect(status()).toBe('ready');
  });

  it('starts nothing on hosts with another kind of processor', () => {
    const { world, holder, ask, written } = seeded();
    ask();
    written();
    for (const host of Object.values(world.system.hosts)) host.accel = host.host === holder ? 'tcg' : 'kvm';
    for (let round = 0; round < 3; round++) {
      const [start] = world.do({ type: 'seed-checkpoint', name: NAME, ticket: TICKET });
      expect(start).toMatchObject({ type: 'start-master', host: holder });
    }
  });
});
