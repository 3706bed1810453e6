import * as fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { SnowflockError } from '@snowflock/protocol';
import {
  DEFAULT_LIMITS,
  hostUsage,
  isEnded,
  systemState,
  vmsOf,
  type Cluster,
  type Ticket,
} from '../src/index.ts';
import { serveQueue } from '../src/queue.ts';
import { World } from './world.ts';

const pick = <T>(items: readonly T[], index: number): T | undefined =>
  items[index % Math.max(items.length, 1)];

/** What a host might say that it has: nothing, all, some, and sometimes what nobody knows. */
function listing(world: World, host: string, b: number): string[] | undefined {
  if (b % 3 === 0) return undefined;
  const names = Object.values(world.system.clusters).flatMap((cluster) =>
    vmsOf(cluster).flatMap((vm) => (vm.host === host ? [`${cluster.clusterid}:${vm.vmid}`] : [])),
  );
  const some = names.filter((_, index) => b % 5 !== 0 || (index + b) % 2 === 0);
  return b % 11 === 0 ? [...some, `${b % 40}:${b % 50}`] : some;
}

/** One random step; errors that a caller may get are part of the game. */
function step(world: World, { what, a, b }: { what: number; a: number; b: number }): void {
  const clusters = Object.values(world.system.clusters);
  const cluster: Cluster | undefined = pick(clusters, a);
  const clusterid = cluster?.clusterid ?? 999;
  const ticket: Ticket | undefined = pick(Object.values(cluster?.tickets ?? {}), b);
  const id = ticket?.ticket ?? world.id();
  // Mostly a VM that may ask, sometimes one that has ended, or is of another ticket.
  const by = pick(cluster ? vmsOf(cluster) : [], a >>> 2)?.vmid ?? 0;
  const host = pick(Object.keys(world.system.hosts), a + b) ?? '';
  try {
    switch (what) {
      case 0:
        return void world.seed({ vcpus: 1 + (a % 4), memoryMib: 128 << (b % 4) });
      case 1:
      case 2:
        return void world.request(clusterid, 1 + (a % 24), {
          procs: b % 3 === 0,
          min: (b % 7) - 1,
          block: b % 2 === 0,
          by,
        });
      case 3:
        world.do({ type: 'redeem', clusterid, ticket: id });
        return void world.do({
          ...{ type: 'launched', clusterid, ticket: id },
          report: { clones: (ticket?.vmids ?? []).map((vmid) => ({ vmid, ok: (vmid + a) % 5 !== 0 })) },
        });
      case 4:
        return void world.do({ type: 'merge', clusterid, ticket: id });
      case 5:
        return void world.do({ type: 'dispose', clusterid, ticket: id });
      case 6: {
        const vm = pick(cluster ? vmsOf(cluster) : [], b);
        return void world.do({
          type: 'vm-ended',
          clusterid,
          vmid: vm?.vmid ?? 5,
          ended: { how: a % 2 === 0 ? 'exited' : 'lost', reason: 'r' },
        });
      }
      case 7:
        return void world.do({ type: 'shutdown', clusterid, force: a % 2 === 0, byGuest: b % 2 === 0 });
      case 8:
        world.nowMs += a % DEFAULT_LIMITS.hostTimeoutMs;
        return void world.do({ type: 'tick', nowMs: world.nowMs });
      case 9:
        return void world.report(host, b % 4 === 0 ? `instance-${b}` : undefined, listing(world, host, b));
      case 10:
        return void world.do({
          type: 'prepared',
          clusterid,
          ticket: id,
          host,
          part: a % 2 === 0 ? 'clones' : 'source',
          error: b % 3 === 0 ? 'e' : null,
        });
      case 11:
        return void world.do({
          type: 'cancel-request',
          requestId: pick(world.system.queue, a)?.requestId ?? 'none',
        });
      case 12:
        return void world.do({ type: 'merge-all', clusterid, by: b % 2 === 0 ? by : undefined });
      default: {
        const cleanup = pick(world.system.cleanups, a);
        if (cleanup) world.do({ type: 'cleaned', ...cleanup });
      }
    }
  } catch (error) {
    if (!(error instanceof SnowflockError) || error.code === 'internal') throw error;
  }
}

function drain(world: World): void {
  for (const host of Object.keys(world.system.hosts)) world.report(host);
  world.clean();
  for (const { clusterid } of Object.values(world.system.clusters))
    world.do({ type: 'shutdown', clusterid, force: true, byGuest: false });
  world.clean();
}

describe('any sequence of commands', () => {
  const steps = fc.array(
    fc.record({ what: fc.integer({ min: 0, max: 15 }), a: fc.nat(10_000), b: fc.nat(10_000) }),
    { maxLength: 120 },
  );

  it('keeps the invariants, is atomic, never reuses a vmid, and frees everything in the end', () => {
    fc.assert(
      fc.property(steps, fc.integer({ min: 1, max: 12 }), fc.nat(), (sequence, hosts, seed) => {
        const world = new World({ hosts, seed });
        const seen = new Map<string, string>();
        for (const each of sequence) {
          step(world, each);
          for (const cluster of Object.values(world.system.clusters))
            for (const vm of vmsOf(cluster)) {
              const owner = vm.ticket ?? 'master';
              const key = `${cluster.clusterid}:${vm.vmid}`;
              expect(seen.get(key) ?? owner).toBe(owner);
              seen.set(key, owner);
            }
          // Whoever waits, waits for a reason: asking again changes nothing.
          const again = serveQueue(structuredClone(world.system), {
            random: () => 0,
            newTicket: () => world.id(),
          });
          expect(again).toEqual([]);
        }
        drain(world);
        expect(world.system).toMatchObject({ clusters: {}, queue: [], cleanups: [] });
        for (const used of hostUsage(world.system).values())
          expect(used).toEqual({ cpus: 0, ramBytes: 0, vms: 0, clones: 0 });
      }),
      { numRuns: 300 },
    );
  });

  it('holds for hundreds of hosts', () => {
    fc.assert(
      fc.property(
        fc.infiniteStream(
          fc.record({ what: fc.integer({ min: 0, max: 15 }), a: fc.nat(10_000), b: fc.nat(10_000) }),
        ),
        fc.nat(),
        (stream, seed) => {
          const world = new World({ hosts: 300, cpus: 8, ramMib: 2048, seed });
          for (const each of [...stream.take(80)]) step(world, each);
          drain(world);
          expect(world.system.clusters).toEqual({});
        },
      ),
      { numRuns: 5, endOnFailure: true },
    );
  });
});

describe('fairness', () => {
  it('serves blocked requests in the order they came, whatever their sizes: nobody starves', () => {
    fc.assert(
      fc.property(
        fc.array(fc.record({ size: fc.integer({ min: 1, max: 7 }), all: fc.boolean() }), {
          minLength: 2,
          maxLength: 40,
        }),
        fc.nat(),
        (requests, seed) => {
          const world = new World({ hosts: 4, cpus: 2, seed });
          const clusterid = world.seed();
          const order: string[] = [];
          const seen = new Set<string>();
          const note = (): void => {
            for (const id of world.grants.keys()) {
              if (!seen.has(id)) order.push(id);
              seen.add(id);
            }
          };
          requests.forEach(({ size, all }, index) => {
            world.request(clusterid, size, { min: all ? -1 : 0, block: true, requestId: `r${index}` });
            note();
          });
          for (let round = 0; world.system.queue.length > 0; round++) {
            expect(round).toBeLessThan(requests.length);
            for (const ticket of Object.keys(world.system.clusters[clusterid]?.tickets ?? {}))
              world.do({ type: 'dispose', clusterid, ticket });
            world.clean();
            note();
          }
          expect(order).toEqual(requests.map((_, index) => `r${index}`));
        },
      ),
    );
  });
});

it('answers quickly at scale: 200 hosts, 2,000 VMs', () => {
  const world = new World({ hosts: 200, cpus: 16, ramMib: 65_536 });
  const clusters = Array.from({ length: 10 }, () => world.seed());
  for (const clusterid of clusters) for (let round = 0; round < 10; round++) world.fork(clusterid, 20);
  const vms = Object.values(world.system.clusters).flatMap(vmsOf);
  expect(vms.filter((vm) => !isEnded(vm))).toHaveLength(2010);
  const clones = [...hostUsage(world.system).values()].map((used) => used.clones);
  expect(Math.max(...clones) - Math.min(...clones)).toBeLessThanOrEqual(1);
  const before = process.threadCpuUsage();
  systemState(world.system);
  const { user, system } = process.threadCpuUsage(before);
  expect((user + system) / 1000).toBeLessThan(100);
});
