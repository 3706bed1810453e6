import * as fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { PresenceMap } from '../src/index.ts';
import { readPresence } from '../src/memserver/frozen-memory.ts';

/** Maps made of runs, as memory is, and of noise, as it is not. */
const pages: fc.Arbitrary<boolean[]> = fc.oneof(
  fc.array(fc.boolean(), { maxLength: 500 }),
  fc
    .array(fc.tuple(fc.boolean(), fc.integer({ min: 1, max: 200 })), { maxLength: 20 })
    .map((runs) => runs.flatMap(([present, length]) => Array.from({ length }, () => present))),
);

function mapOf(present: readonly boolean[]): PresenceMap {
  const map = new PresenceMap(present.length);
  present.forEach((has, page) => has && map.set(page));
  return map;
}

function listOf(map: PresenceMap): boolean[] {
  return Array.from({ length: map.pageCount }, (_, page) => map.has(page));
}

describe('PresenceMap', () => {
  it('survives serialisation', () => {
    fc.assert(
      fc.property(pages, (present) => {
        const decoded = PresenceMap.decode(mapOf(present).encode(), { maxPages: present.length });
        expect(listOf(decoded)).toEqual(present);
        expect(decoded.count()).toBe(present.filter(Boolean).length);
      }),
    );
  });

  it('finds the next page of a kind as a plain search does', () => {
    fc.assert(
      fc.property(pages, fc.boolean(), fc.nat(600), fc.nat(600), (present, kind, from, limit) => {
        const end = Math.min(limit, present.length);
        let expected = from;
        while (expected < end && present[expected] !== kind) expected++;
        expect(mapOf(present).next(from, kind, limit)).toBe(from >= end ? end : expected);
      }),
    );
  });

  it('knows how many pages lie before one, also after it has changed', () => {
    fc.assert(
      fc.property(pages, fc.nat(600), fc.nat(600), (present, at, added) => {
        const before = (list: readonly boolean[]): number => list.slice(0, at).filter(Boolean).length;
        const map = mapOf(present);
        const page = Math.min(at, present.length);
        expect(map.rank(page)).toBe(before(present));
        if (added >= present.length) return;
        map.set(added);
        expect(map.rank(page)).toBe(before(present.with(added, true)));
      }),
    );
  });

  it('unites with another', () => {
    fc.assert(
      fc.property(fc.array(fc.tuple(fc.boolean(), fc.boolean()), { maxLength: 300 }), (pairs) => {
        const map = mapOf(pairs.map(([a]) => a));
        map.union(mapOf(pairs.map(([, b]) => b)));
        expect(listOf(map)).toEqual(pairs.map(([a, b]) => a || b));
      }),
    );
  });

  it('takes present and swapped anonymous pages from page map entries, and no others', () => {
    const entries = new BigUint64Array([
      0n,
      1n << 63n,
      1n << 62n,
      1n << 61n,
      (1n << 55n) - 1n,
      (1n << 63n) | 5n,
      (1n << 63n) | (1n << 61n),
      (1n << 62n) | (1n << 61n),
    ]);
    const map = new PresenceMap(10);
    map.setFromPagemap(1, new Uint32Array(entries.buffer));
    const anonymous = [false, false, true, true, false, false, true, false, true, false];
    expect(listOf(map)).toEqual(anonymous);
    map.setFromPagemap(1, new Uint32Array(entries.buffer), { filePages: true });
    expect(listOf(map)).toEqual(anonymous.map((each, page) => each || page === 7));
  });

  it('is refused when damaged, with an error and never with a wrong map', () => {
    fc.assert(
      fc.property(pages, fc.nat(), fc.integer({ min: 1, max: 255 }), (present, where, flip) => {
        const bytes = mapOf(present).encode();
        const at = where % bytes.length;
        bytes[at] = (bytes[at] ?? 0) ^ flip;
        let decoded: PresenceMap;
        try {
          decoded = PresenceMap.decode(bytes, { maxPages: present.length });
        } catch (error) {
          expect(error).toMatchObject({ code: 'bad-request' });
          return;
        }
        // a flipped bit in the compressed part may go unseen; what is decoded is within its limits all the same
        expect(decoded.pageCount).toBeLessThanOrEqual(present.length);
        expect(decoded.count()).toBeLessThanOrEqual(decoded.pageCount);
      }),
    );
  });

  it('is refused when it is cut off or larger than expected', () => {
    const bytes = mapOf(Array.from({ length: 1000 }, (_, page) => page % 3 === 0)).encode();
    for (let length = 0; length < bytes.length; length++)
      expect(() => PresenceMap.decode(bytes.subarray(0, length), { maxPages: 1000 })).toThrow();
    expect(() => PresenceMap.decode(bytes, { maxPages: 999 })).toThrow(/at most 999/);
  });

  it('is small for what memory looks like', () => {
    const map = new PresenceMap(65536);
    for (let page = 0; page < 65536; page++) if ((page >>> 9) % 3 === 0) map.set(page);
    expect(map.encode().length).toBeLessThan(200);
  });

  it('names the process when there is none', () => {
    const ranges = [{ start: 0, lengthBytes: 4096 }];
    expect(() => readPresence(2 ** 22 + 1, ranges, { filePages: false })).toThrow(/page map/);
  });
});
