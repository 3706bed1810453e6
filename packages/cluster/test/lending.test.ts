// A batch system that shares the hosts with SnowFlock, played: tasks are queued, scheduled some time later, one by one, on
// whatever host has room beside other people's jobs; they are cancelled when nobody uses them, and sometimes killed.

import * as fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { hostUsage, isEnded, needsOf, seededRandom, vmsOf, type Effect } from '../src/index.ts';
import { World } from './world.ts';

const MIB = 2 ** 20;

class BatchSystem {
  readonly world: World;
  readonly lent = new Map<string, number>();
  /** Processors of each host that other people's jobs use. */
  readonly others = new Map<string, number>();
  readonly #cpus: number;
  readonly #random: () => number;

  constructor(options: { hosts: number; cpus: number; seed: number }) {
    this.world = new World({ ...options, ramMib: 64 * 1024 });
    this.#cpus = options.cpus;
    this.#random = seededRandom(options.seed);
    for (const host of Object.keys(this.world.system.hosts)) {
      this.others.set(host, 0);
      this.#lend(host, 0, 'nothing was asked for yet');
    }
  }

  /** The scheduler runs once: one more task where there is room, if somebody waits for it. */
  schedule(): void {
    const { waiting } = needsOf(this.world.system);
    if (waiting.length === 0) return;
    const free = [...this.lent].filter(([host, cpus]) => cpus + (this.others.get(host) ?? 0) < this.#cpus);
    const [host, cpus] = free[Math.floor(this.#random() * free.length)] ?? [];
    if (host !== undefined && cpus !== undefined) this.#lend(host, cpus + 1, 'scheduled');
  }

  /** Tasks that nobody needs end. */
  reap(): void {
    if (needsOf(this.world.system).waiting.length > 0) return;
    for (const { host, cpus } of needsOf(this.world.system).idle)
      if (cpus > 0) this.#lend(host, (this.lent.get(host) ?? 0) - cpus, 'idle');
  }

  /** Somebody else's job of higher priority takes a processor of a host, if need be one that is lent. */
  preempt(host: string): Effect[] {
    const others = Math.min(this.#cpus, (this.others.get(host) ?? 0) + 1);
    this.others.set(host, others);
    const lent = this.lent.get(host) ?? 0;
    return lent + others <= this.#cpus ? [] : this.#lend(host, this.#cpus - others, 'its task was preempted');
  }

  #lend(host: string, cpus: number, reason: string): Effect[] {
    this.lent.set(host, cpus);
    const lent = { cpus, ramBytes: cpus * 1024 * MIB };
    return this.world.do({ type: 'capacity-changed', host, lent, reason });
  }
}

/** A cluster whose master VM has its processor lent already. */
function started(options: { hosts: number; cpus: number; seed?: number }) {
  const batch = new BatchSystem({ seed: 1, ...options });
  const { world } = batch;
  world.do({
    ...{ type: 'capacity-changed', host: 'h0', reason: 'for the master VM' },
    lent: { cpus: 1, ramBytes: 1024 * MIB },
  });
  batch.lent.set('h0', 1);
  return { batch, world, clusterid: world.seed() };
}

describe('a lender of resources, as a batch system is', () => {
  it('grants when it can: a request waits for it, in part if that will do', () => {
    const { batch, world, clusterid } = started({ hosts: 3, cpus: 4 });
    expect(world.request(clusterid, 3)).toEqual({ ticket: null, allowed: 0 });
    expect(world.request(clusterid, 4, { min: -1, block: true, requestId: 'all' })).toBeUndefined();
    expect(world.request(clusterid, 4, { min: 2, block: true, requestId: 'two' })).toBeUndefined();
    expect(needsOf(world.system).waiting).toMatchObject([
      { requestId: 'all', count: 4, least: 4 },
      { requestId: 'two', count: 4, least: 2 },
    ]);
    for (let tasks = 0; tasks < 3; tasks++) batch.schedule();
    expect(world.grants.has('all')).toBe(false);
    batch.schedule();
    expect(world.grants.get('all')).toMatchObject({ allowed: 4 });
    batch.schedule();
    expect(world.grants.has('two')).toBe(false);
    batch.schedule();
    expect(world.grants.get('two')).toMatchObject({ allowed: 2 });
  });

  it('gets back what is not used any more, and not before the host has confirmed', () => {
    const { batch, world, clusterid } = started({ hosts: 2, cpus: 4 });
    world.request(clusterid, 3, { min: -1, block: true, requestId: 'r' });
    for (let tasks = 0; tasks < 3; tasks++) batch.schedule();
    world.do({ type: 'merge-all', clusterid });
    batch.reap();
    expect([...batch.lent.values()].reduce((a, b) => a + b)).toBe(4);
    world.clean();
    batch.reap();
    expect([...batch.lent.values()].reduce((a, b) => a + b)).toBe(1);
  });

  it('counts what others use, and when it takes away what is in use, the youngest clones there are lost', () => {
    const { batch, world, clusterid } = started({ hosts: 2, cpus: 2 });
    batch.preempt('h1');
    const request = { min: -1, block: true };
    expect(world.request(clusterid, 2, { ...request, requestId: 'r' })).toBeUndefined();
    for (let tasks = 0; tasks < 5; tasks++) batch.schedule();
    expect(world.grants.get('r')).toMatchObject({ allowed: 2 });
    expect([...batch.lent]).toEqual([
      ['h0', 2],
      ['h1', 1],
    ]);
    const effects = batch.preempt('h1');
    expect(effects).toMatchObject([
      { type: 'vm-ended', host: 'h1', how: 'lost', reason: 'its task was preempted' },
      { type: 'clean-up', host: 'h1', ticket: null },
    ]);
    world.clean();
    expect(hostUsage(world.system).get('h1')).toMatchObject({ cpus: 0 });
  });

  it('whatever it does: nothing beyond what is lent once hosts have confirmed, everybody served in the end, in order', () => {
    fc.assert(
      fc.property(
        fc.array(fc.record({ what: fc.integer({ min: 0, max: 9 }), a: fc.nat(1000) }), { maxLength: 80 }),
        fc.nat(),
        (steps, seed) => {
          const { batch, world, clusterid } = started({ hosts: 4, cpus: 4, seed });
          const asked: string[] = [];
          for (const { what, a } of steps) {
            if (what < 2) {
              const requestId = world.id();
              asked.push(requestId);
              world.request(clusterid, 1 + (a % 5), { min: a % 2 === 0 ? -1 : 0, block: true, requestId });
            } else if (what < 6) batch.schedule();
            else if (what < 7) batch.reap();
            else if (what < 8) batch.preempt(`h${1 + (a % 3)}`);
            else {
              const ticket = Object.keys(world.system.clusters[clusterid]?.tickets ?? {})[0];
              if (ticket) world.do({ type: 'dispose', clusterid, ticket });
            }
            if (a % 3 === 0) world.clean();
            for (const [host, used] of hostUsage(world.system))
              if (world.system.cleanups.every((cleanup) => cleanup.host !== host))
                expect(used.cpus, host).toBeLessThanOrEqual(batch.lent.get(host) ?? 0);
          }
          for (const host of batch.others.keys()) batch.others.set(host, 0);
          for (let round = 0; world.system.queue.length > 0; round++) {
            expect(round).toBeLessThan(500);
            world.do({ type: 'merge-all', clusterid });
            world.clean();
            batch.schedule();
          }
          expect([...world.grants.keys()].filter((id) => asked.includes(id))).toEqual(asked);
          world.do({ type: 'merge-all', clusterid });
          world.clean();
          batch.reap();
          const vms = Object.values(world.system.clusters).flatMap(vmsOf);
          expect(vms.filter((vm) => !isEnded(vm))).toHaveLength(1);
          expect([...batch.lent.values()].reduce((sum, cpus) => sum + cpus)).toBe(1);
        },
      ),
      { numRuns: 100 },
    );
  });
});
