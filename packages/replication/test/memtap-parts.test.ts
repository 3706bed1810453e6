// The memtap's parts that need no kernel: page states, request ids, the store queue, read-ahead, latencies.

import * as fc from 'fast-check';
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import {
  createPageFrame,
  PAGE_BYTES,
  PAGE_FRAME_HEADER_BYTES,
  pageDataOffset,
  type PageFrame,
  PageFrameType,
  PAGE_WAIT_BOUNDS_US,
  PageRegion,
} from '@snowflock/protocol/pages';
import { LatencyHistogram } from '../src/latency-histogram.ts';
import { AskerAccounts } from '../src/memtap/asker-accounts.ts';
import { Delivery } from '../src/memtap/delivery.ts';
import { ReadAnswerer } from '../src/memtap/held-reads.ts';
import { ReadAhead } from '../src/memtap/read-ahead.ts';
import {
  allocateShared,
  demandRequestId,
  GENERATION_MASK,
  generationOfRequest,
  PageState,
  partOfRequest,
  SharedState,
  Slot,
  SLOT_COUNT,
  SlotKind,
  slotOfRequest,
} from '../src/memtap/shared-state.ts';
import { SlotTable } from '../src/memtap/slot-table.ts';
import {
  allocateStoreQueue,
  STORE_QUEUE_PAGES,
  type StoreEntry,
  StoreQueue,
} from '../src/memtap/store-queue.ts';

describe('page states', () => {
  it('let exactly one claimer have a page, and only one that has to be fetched', () => {
    const state = new SharedState(allocateShared({ ramPages: 8, diskPages: 0 }));
    const states = state.statesOf(0);
    for (const before of Object.values(PageState)) {
      states[0] = before;
      const claimable = before === PageState.remote || before === PageState.cached;
      expect(state.claim(states, 0)).toBe(claimable);
      expect(state.claim(states, 0)).toBe(false);
      expect(states[0]).toBe(claimable ? PageState.wanted : before);
    }
  });

  it('give back claims and nothing else: zero is final', () => {
    const state = new SharedState(allocateShared({ ramPages: 1, diskPages: 0 }));
    const states = state.statesOf(0);
    for (const before of Object.values(PageState)) {
      states[0] = before;
      state.unclaim(states, 0);
      expect(states[0]).toBe(before === PageState.wanted ? PageState.remote : before);
    }
  });
});

describe('request ids', () => {
  it('carry slot, part and generation', () => {
    fc.assert(
      fc.property(fc.nat(SLOT_COUNT - 1), fc.nat(16), fc.nat(GENERATION_MASK), (slot, part, generation) => {
        const id = demandRequestId(slot, part, generation);
        expect(id).toBeGreaterThanOrEqual(0);
        expect([slotOfRequest(id), partOfRequest(id), generationOfRequest(id)]).toEqual([
          slot,
          part,
          generation,
        ]);
      }),
    );
  });
});

describe('the store queue', () => {
  it('hands out what was put in, in order and undamaged, under any interleaving', () => {
    const commands = fc.array(fc.oneof(fc.constant(0), fc.integer({ min: 1, max: 256 })), { maxLength: 200 });
    const queue = new StoreQueue(allocateStoreQueue());
    const source = Buffer.alloc(256 * 4096);
    const entry: StoreEntry = { region: 0, firstPage: 0, pageCount: 0, offset: 0 };
    let serial = 0;
    const take = (model: { first: number; count: number }[]): void => {
      const expected = model.shift();
      if (expected === undefined) return;
      expect(queue.find(0, expected.first + expected.count - 1)).toBeGreaterThanOrEqual(0);
      expect(queue.take(entry)).toBe(true);
      expect([entry.firstPage, entry.pageCount]).toEqual([expected.first, expected.count]);
      for (let page = 0; page < expected.count; page++)
        expect(queue.data.readUInt32LE(entry.offset + page * 4096)).toBe(expected.first + page);
      queue.release();
    };
    fc.assert(
      fc.property(commands, (steps) => {
        const model: { first: number; count: number }[] = [];
        for (const count of steps) {
          if (count === 0) {
            take(model);
            continue;
          }
          for (let page = 0; page < count; page++) source.writeUInt32LE(serial + page, page * 4096);
          const stored = queue.push({
            region: 0,
            firstPage: serial,
            pageCount: count,
            from: source,
            offset: 0,
          });
          if (stored) model.push({ first: serial, count });
          else expect(model.reduce((sum, run) => sum + run.count, 0)).toBeGreaterThan(STORE_QUEUE_PAGES / 2);
          serial += count;
        }
        while (model.length > 0) take(model);
        expect(queue.depth).toBe(0);
      }),
      { numRuns: 30 },
    );
  });

  it('copies a queued page out, and says when it came too late', () => {
    const queue = new StoreQueue(allocateStoreQueue());
    const page = Buffer.alloc(4096, 7);
    const target = Buffer.alloc(4096);
    expect(queue.push({ region: 1, firstPage: 10, pageCount: 1, from: page, offset: 0 })).toBe(true);
    expect(queue.copyPage(0, 10, target)).toBe(false);
    expect(queue.copyPage(1, 11, target)).toBe(false);
    expect(queue.copyPage(1, 10, target)).toBe(true);
    expect(target).toEqual(page);
    queue.take({ region: 0, firstPage: 0, pageCount: 0, offset: 0 });
    queue.release();
    expect(queue.copyPage(1, 10, target)).toBe(false);
  });
});

describe('delivery', () => {
  it('answers a READ once, although pages of it come twice', () => {
    const directory = mkdtempSync(join(tmpdir(), 'snowflock-parts-'));
    const fd = openSync(join(directory, 'fuse'), 'w+');
    try {
      const state = new SharedState(allocateShared({ ramPages: 16, diskPages: 0 }));
      const accounts = new AskerAccounts();
      const slots = new SlotTable({ state, answerer: new ReadAnswerer(fd), accounts });
      const queue = new StoreQueue(allocateStoreQueue());
      const delivery = new Delivery({ state, slots, queue });
      state.slots[Slot.sizeBytes] = 8 * PAGE_BYTES;
      state.slots[Slot.kind] = SlotKind.posted;
      const held = slots.adopt(0);
      state.statesOf(0).fill(PageState.wanted, 0, 8);
      delivery.deliver(...dataFrame(4, 4));
      expect(held.waiting).toBe(true);
      delivery.deliver(...dataFrame(0, 8));
      expect([held.waiting, slots.waiting.length]).toEqual([false, 0]);
      const answer = readFileSync(join(directory, 'fuse'));
      const pages = Array.from({ length: 8 }, (_, page) => Buffer.alloc(PAGE_BYTES, page + 1));
      expect(answer.equals(Buffer.concat([answer.subarray(0, 16), ...pages]))).toBe(true);
    } finally {
      closeSync(fd);
      rmSync(directory, { recursive: true });
    }
  });

  function dataFrame(firstPage: number, pageCount: number): [PageFrame, Buffer, number] {
    const at = pageDataOffset(pageCount);
    const bytes = Buffer.alloc(at + pageCount * PAGE_BYTES);
    bytes.fill(0xff, PAGE_FRAME_HEADER_BYTES, PAGE_FRAME_HEADER_BYTES + 1);
    for (let index = 0; index < pageCount; index++)
      bytes.fill(firstPage + index + 1, at + index * PAGE_BYTES, at + (index + 1) * PAGE_BYTES);
    return [{ ...createPageFrame(), type: PageFrameType.data, firstPage, pageCount }, bytes, 0];
  }
});

describe('answers', () => {
  it.each([
    ['one page', 2 * PAGE_BYTES, PAGE_BYTES],
    ['several pages', PAGE_BYTES, 3 * PAGE_BYTES],
    ['what begins and ends inside pages', 100, 2 * PAGE_BYTES],
    ['less than a page', PAGE_BYTES + 7, 50],
  ])('are one write, of a header and the bytes asked for: %s', (_, offset, sizeBytes) => {
    const directory = mkdtempSync(join(tmpdir(), 'snowflock-parts-'));
    const fd = openSync(join(directory, 'fuse'), 'w+');
    try {
      const state = new SharedState(allocateShared({ ramPages: 4, diskPages: 0 }));
      const slots = new SlotTable({
        state,
        answerer: new ReadAnswerer(fd),
        accounts: new AskerAccounts(),
      });
      state.slots.set([1, 0x1234567, 0x89abcd, PageRegion.ram, offset, 0, sizeBytes]);
      const held = slots.adopt(0);
      const ram = Buffer.from(Array.from({ length: 4 * PAGE_BYTES }, (_, at) => (at * 31) >>> 3));
      for (let page = 0; page < held.pageCount; page++)
        slots.fill(held, held.firstPage + page, ram, (held.firstPage + page) * PAGE_BYTES);
      const header = Buffer.alloc(16);
      [16 + sizeBytes, 0, 0x1234567, 0x89abcd].forEach((word, index) =>
        header.writeUInt32LE(word, 4 * index),
      );
      const expected = Buffer.concat([header, ram.subarray(offset, offset + sizeBytes)]);
      expect(readFileSync(join(directory, 'fuse')).equals(expected)).toBe(true);
      expect([held.waiting, state.slots[Slot.used]]).toEqual([false, 0]);
    } finally {
      closeSync(fd);
      rmSync(directory, { recursive: true });
    }
  });
});

describe('read-ahead', () => {
  const limits = { min: 3, max: 256 };

  it('stays small for scattered misses', () => {
    const readAhead = new ReadAhead();
    let extra = 0;
    for (let miss = 0; miss < 500; miss++) extra += readAhead.onMiss(0, (miss * 7919) % 65536, 1, limits);
    expect(extra / 500).toBeLessThan(8);
  });

  it('doubles along a stream up to its limit, also when streams alternate', () => {
    const readAhead = new ReadAhead();
    const next = [0, 20_000, 40_000];
    const windows: number[][] = [[], [], []];
    for (let round = 0; round < 10; round++)
      next.forEach((page, stream) => {
        const window = readAhead.onMiss(0, page, 1, limits);
        windows[stream]?.push(window);
        next[stream] = page + 1 + window;
      });
    for (const grown of windows) expect(grown).toEqual([3, 8, 16, 32, 64, 128, 256, 256, 256, 256]);
  });

  it('keeps regions apart', () => {
    const readAhead = new ReadAhead();
    readAhead.onMiss(0, 100, 1, limits);
    expect(readAhead.onMiss(1, 104, 1, limits)).toBe(3);
  });

  it('never exceeds its limit', () => {
    const readAhead = new ReadAhead();
    fc.assert(
      fc.property(fc.nat(1000), fc.integer({ min: 1, max: 256 }), fc.nat(256), (page, count, max) => {
        expect(readAhead.onMiss(0, page, count, { min: 0, max })).toBeLessThanOrEqual(max);
      }),
    );
  });
});

describe('LatencyHistogram', () => {
  it('is within four percent of the true percentiles', () => {
    fc.assert(
      fc.property(
        fc.array(fc.integer({ min: 0, max: 5_000_000 }), { minLength: 1, maxLength: 300 }),
        (values) => {
          const histogram = new LatencyHistogram();
          for (const value of values) histogram.record(value);
          const sorted = values.toSorted((a, b) => a - b);
          const summary = histogram.summary();
          expect(summary.minUs).toBe(sorted[0]);
          expect(summary.maxUs).toBe(sorted.at(-1));
          const median = sorted[Math.ceil(values.length / 2) - 1] ?? 0;
          expect(summary.medianUs).toBeGreaterThanOrEqual(Math.min(median, summary.maxUs));
          expect(summary.medianUs).toBeLessThanOrEqual(median * 1.04 + 1);
          for (const [index, bound] of PAGE_WAIT_BOUNDS_US.entries()) {
            const upTo = (limit: number): number => sorted.filter((value) => value <= limit).length;
            expect(summary.buckets[index]).toBeGreaterThanOrEqual(upTo(bound));
            expect(summary.buckets[index]).toBeLessThanOrEqual(upTo(bound * 1.04 + 1));
          }
        },
      ),
    );
  });
});
