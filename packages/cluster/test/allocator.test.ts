import * as fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { allowedBy, defaultAllocator, seededRandom, type HostRoom } from '../src/index.ts';

const room = (host: string, cpusFree: number, ramFreeBytes = 1000, clones = 0): HostRoom => ({
  host,
  cpusFree,
  ramFreeBytes,
  vmsFree: 1000,
  clones,
});
const spread = (slots: readonly { host: string }[]): Record<string, number> => {
  const counts: Record<string, number> = {};
  for (const { host } of slots) counts[host] = (counts[host] ?? 0) + 1;
  return counts;
};
const allocate = (
  rooms: HostRoom[],
  count: number,
  options: { procs?: boolean; vcpus?: number; ramBytes?: number; seed?: number } = {},
) =>
  defaultAllocator.allocate(
    rooms,
    { count, procs: options.procs ?? false, vcpus: options.vcpus ?? 1, ramBytes: options.ramBytes ?? 1 },
    seededRandom(options.seed ?? 1),
  );

describe('the default allocator', () => {
  it('spreads clones evenly', () => {
    expect(spread(allocate([room('a', 9), room('b', 9)], 4))).toEqual({ a: 2, b: 2 });
    expect(Object.values(spread(allocate([room('a', 9), room('b', 9), room('c', 9)], 4))).sort()).toEqual([
      1, 1, 2,
    ]);
  });

  it('evens out what was uneven', () => {
    expect(spread(allocate([room('a', 9, 1000, 3), room('b', 9)], 3))).toEqual({ b: 3 });
  });

  it('goes on when a host is full, by processors or by memory', () => {
    expect(spread(allocate([room('a', 1), room('b', 9)], 5))).toEqual({ a: 1, b: 4 });
    expect(spread(allocate([room('a', 9, 1), room('b', 9)], 5))).toEqual({ a: 1, b: 4 });
    expect(allocate([room('a', 1), room('b', 1)], 5)).toHaveLength(2);
    expect(allocate([room('a', 1)], 1, { vcpus: 2 })).toEqual([]);
    expect(allocate([], 1)).toEqual([]);
  });

  it('spreads processors over VMs of at most the shape (the example of the manual: 23 of 16)', () => {
    const slots = allocate([room('a', 16), room('b', 16)], 23, { procs: true, vcpus: 16 });
    expect(slots.map((slot) => slot.vcpus)).toEqual([16, 7]);
    expect(allowedBy(slots, true)).toBe(23);
    expect(allocate([room('a', 3)], 8, { procs: true, vcpus: 2 }).map((slot) => slot.vcpus)).toEqual([2, 1]);
  });

  it('breaks ties at random, repeatably', () => {
    const rooms = [room('a', 9), room('b', 9), room('c', 9)];
    const first = Array.from({ length: 300 }, (_, seed) => allocate(rooms, 1, { seed })[0]?.host);
    expect(first).toEqual(Array.from({ length: 300 }, (_, seed) => allocate(rooms, 1, { seed })[0]?.host));
    for (const host of ['a', 'b', 'c'])
      expect(first.filter((each) => each === host).length).toBeGreaterThan(60);
  });

  const rooms = fc.array(
    fc.record({
      cpusFree: fc.integer({ min: 0, max: 16 }),
      ramFreeBytes: fc.integer({ min: 0, max: 64 }),
      clones: fc.integer({ min: 0, max: 8 }),
      vmsFree: fc.integer({ min: 0, max: 20 }),
    }),
    { minLength: 1, maxLength: 300 },
  );

  it('keeps both rules of the manual, whatever the hosts and the request', () => {
    fc.assert(
      fc.property(
        rooms,
        fc.integer({ min: 1, max: 200 }),
        fc.boolean(),
        fc.integer({ min: 1, max: 8 }),
        fc.integer({ min: 1, max: 8 }),
        fc.nat(),
        (bare, count, procs, vcpus, ramBytes, seed) => {
          const hosts = bare.map((each, index) => ({ host: `h${index}`, ...each }));
          const slots = allocate(hosts, count, { procs, vcpus, ramBytes, seed });
          const need = procs ? 1 : vcpus;
          const after = hosts.map((host) => {
            const mine = slots.filter((slot) => slot.host === host.host);
            const cpus = mine.reduce((sum, slot) => sum + slot.vcpus, 0);
            expect(cpus).toBeLessThanOrEqual(host.cpusFree);
            expect(mine.length * ramBytes).toBeLessThanOrEqual(host.ramFreeBytes);
            expect(mine.length).toBeLessThanOrEqual(host.vmsFree);
            const full =
              host.cpusFree - cpus < need ||
              host.ramFreeBytes - mine.length * ramBytes < ramBytes ||
              mine.length === host.vmsFree;
            return { clones: host.clones + mine.length, got: mine.length > 0, full };
          });
          const least = Math.min(
            ...after.filter((host) => !host.full).map((host) => host.clones),
            Number.POSITIVE_INFINITY,
          );
          for (const host of after) if (host.got) expect(host.clones).toBeLessThanOrEqual(least + 1);
          const allowed = allowedBy(slots, procs);
          expect(allowed).toBeLessThanOrEqual(count);
          if (allowed < count) expect(after.every((host) => host.full)).toBe(true);
          for (const slot of slots) expect(slot.vcpus).toBeLessThanOrEqual(vcpus);
        },
      ),
    );
  });
});
