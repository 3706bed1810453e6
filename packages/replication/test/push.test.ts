import fc from 'fast-check';
import { setTimeout as sleep } from 'node:timers/promises';
import { describe, expect, it } from 'vitest';
import { PAGE_FLAG_EARLIER, PageFrameType, PageRegion, createPageFrame } from '@snowflock/protocol';
import { NeedLog, runsOf, type Follower } from '../src/memserver/need-log.ts';
import { NEEDS_MAX } from '../src/needs.ts';
import { HeardNeeds } from '../src/memtap/heard-needs.ts';
import type { PageLink } from '../src/memtap/page-link.ts';
import { BLOCK_PAGES, PushBudget } from '../src/memtap/push-budget.ts';

const read = (firstPage: number, pageCount = 1, region: number = PageRegion.ram) => ({
  ...createPageFrame(),
  ...{ type: PageFrameType.read, region, firstPage, pageCount },
});

const u32 = (pages: readonly number[]): Buffer => Buffer.from(Uint32Array.from(pages).buffer);
const nothing = Buffer.alloc(0);

/** Hears everything, as a session does. */
class Listener implements Follower {
  readonly heard: number[] = [];
  readonly #log: NeedLog;

  constructor(log: NeedLog) {
    this.#log = log;
    log.follow(this);
  }

  tell(): void {
    for (;;) {
      const { pages } = this.#log.next(this.heard.length, 1000);
      if (pages.length === 0) return;
      this.heard.push(...pages);
    }
  }
}

describe('the log of needs', () => {
  it('tells a host that follows what others needed, once, in the order of the first asking', async () => {
    const log = new NeedLog();
    log.open({ earlier: nothing, tellsOwn: true });
    log.note(read(7, 2));
    const first = new Listener(log);
    const second = new Listener(log);
    expect(second.heard).toEqual([7, 8]);
    log.note(read(3));
    log.note(read(8, 2));
    log.note(read(50, 1, PageRegion.disk));
    await sleep(50);
    expect(second.heard).toEqual([7, 8, 3, 9]);
    expect(first.heard).toEqual(second.heard);
  });

  it('tells a single host of its own needs, for those that are fed by it', async () => {
    const log = new NeedLog();
    log.open({ earlier: u32([4, 2]), tellsOwn: true });
    const alone = new Listener(log);
    log.note(read(9));
    await expect.poll(() => alone.heard).toEqual([4, 2, 9]);
  });

  it('tells nobody anything when it is not open', () => {
    const closed = new NeedLog();
    closed.note(read(9));
    expect([new Listener(closed), new Listener(closed)].map(({ heard }) => heard)).toEqual([[], []]);
    expect(closed.encode()).toHaveLength(0);
  });

  it('tells nothing of this fork where everybody hears the multicast', async () => {
    const log = new NeedLog();
    log.open({ earlier: u32([4]), tellsOwn: false });
    const all = [new Listener(log), new Listener(log)];
    log.note(read(9));
    await sleep(50);
    expect(all.map(({ heard }) => heard)).toEqual([[4], [4]]);
    expect(log.encode()).toEqual(u32([4, 9]).subarray(4));
  });

  it('of a relay is what it hears, which it asks for as far as hosts below want it', () => {
    const log = new NeedLog();
    let asked = 0;
    log.passOn(() => asked++);
    log.note(read(9));
    log.hear({ pages: [4, 2], earlier: true });
    expect(asked).toBe(0);
    const below = new Listener(log);
    expect(asked).toBeGreaterThan(0);
    log.hear({ pages: [7], earlier: false });
    expect(below.heard).toEqual([4, 2, 7]);
    expect([log.next(0, 9).earlier, log.next(2, 9).earlier]).toEqual([true, false]);
    log.leave(below);
    asked = 0;
    log.hear({ pages: [8], earlier: false });
    expect(asked).toBe(0);
  });

  it('goes on to the next fork, without what was of no use', () => {
    const log = new NeedLog();
    log.open({ earlier: u32([1, 2, 3, 4]), tellsOwn: true });
    log.note(read(3));
    log.note(read(8, 2));
    expect(log.encode()).toEqual(u32([1, 2, 3, 4, 8, 9]));
    log.note(read(20));
    expect(log.encode()).toEqual(u32([8, 9, 20]));
  });

  it('is bounded, whatever is asked for and learnt', () => {
    const log = new NeedLog();
    log.open({ earlier: u32(Array.from({ length: NEEDS_MAX + 5 }, (_, page) => page)), tellsOwn: true });
    log.note(read(2 * NEEDS_MAX, 256));
    expect(log.encode()).toHaveLength(4 * NEEDS_MAX);
  });

  it('names pages in runs that a frame can hold', () => {
    fc.assert(
      fc.property(fc.array(fc.nat(2000), { maxLength: 800 }), (pages) => {
        const runs = runsOf(pages);
        const named = runs.flatMap(({ firstPage, pageCount }) =>
          Array.from({ length: pageCount }, (_, index) => firstPage + index),
        );
        expect(named).toEqual(pages);
        for (const { pageCount } of runs) expect(pageCount).toBeLessThanOrEqual(256);
      }),
    );
  });
});

describe('what a host hears of needs', () => {
  const needed = (firstPage: number, flags = 0) => ({
    ...createPageFrame(),
    ...{ type: PageFrameType.needed, region: PageRegion.ram, firstPage, pageCount: 2, flags },
  });

  it('is asked for as far as somebody wants it, and again of each source, but kept once', async () => {
    const followed: number[] = [];
    const link = { up: true, follow: (pages: number) => void followed.push(pages) };
    const needs = new HeardNeeds({ link: () => link as unknown as PageLink, pageCount: 100 });
    needs.want(4);
    needs.want(3);
    needs.told(needed(8, PAGE_FLAG_EARLIER));
    needs.told(needed(2));
    expect(followed).toEqual([4]);
    expect(() => needs.told(needed(5))).toThrow('it was not asked about');
    needs.linkDown();
    needs.ask();
    expect(followed).toEqual([4, 4]);
    needs.told(needed(8, PAGE_FLAG_EARLIER));
    needs.told(needed(2));
    expect(await needs.next(0)).toEqual({ pages: [8, 9], earlier: true });
    expect(await needs.next(2)).toEqual({ pages: [2, 3], earlier: false });
    needs.want(2 * NEEDS_MAX);
    expect(needs.wanted).toBe(NEEDS_MAX);
    expect(() => needs.told(needed(99))).toThrow('it was not asked about');
  });

  it('is passed on as soon as there is something new', async () => {
    const link = { up: true, follow: () => undefined };
    const needs = new HeardNeeds({ link: () => link as unknown as PageLink, pageCount: 100 });
    const next = needs.next(0);
    needs.told(needed(8));
    expect(await next).toEqual({ pages: [8, 9], earlier: false });
  });
});

describe('the budget of pushed pages', () => {
  /** Offers blocks from page 0 on, while there is budget; a clone then asks for what was held back if it is among `used`. */
  const offer = (used: (page: number) => boolean, rounds: number): PushBudget => {
    const budget = new PushBudget();
    let page = 0;
    for (let round = 0; round < rounds && budget.left > 0; round++) {
      const block = Array.from({ length: BLOCK_PAGES }, () => page++);
      if (budget.take(block)) continue;
      for (const each of block) if (used(each)) budget.missed(each, 1);
    }
    return budget;
  };

  it('goes on as long as what is pushed is of use', () => {
    const budget = offer(() => true, 1000);
    expect(budget.pushedPages + budget.heldBackPages).toBe(1000 * BLOCK_PAGES);
    expect(budget.usedPages).toBeGreaterThan(0.9 * budget.pushedPages);
    expect(budget.heldBackPages).toBeLessThan(budget.pushedPages / 14);
  });

  it('ends after 2 MiB that nobody came for', () => {
    const budget = offer(() => false, 1000);
    expect(budget.pushedPages).toBe(512);
    expect([budget.usedPages, budget.left]).toEqual([0, 0]);
    budget.trustEarlier();
    expect(budget.left).toBe(4096 - 512);
  });

  it('never lets more than twice what was of use be fetched for nothing, whatever the pattern', () => {
    fc.assert(
      fc.property(fc.infiniteStream(fc.boolean()), (useful) => {
        const uses = new Map<number, boolean>();
        const budget = offer((page) => {
          const block = Math.floor(page / BLOCK_PAGES);
          if (!uses.has(block)) uses.set(block, useful.next().value === true);
          return uses.get(block) ?? false;
        }, 2000);
        expect(budget.pushedPages).toBeLessThanOrEqual(512 + 32 * budget.missedPages + BLOCK_PAGES);
      }),
    );
  });

  it('counts a block once, however many of its pages are asked for', () => {
    const budget = new PushBudget();
    let page = 0;
    const next = (): number[] => Array.from({ length: BLOCK_PAGES }, () => page++);
    let block = next();
    while (budget.take(block)) block = next();
    const { left } = budget;
    expect(budget.missed(block[3] ?? 0, 2)).toBe(true);
    expect(budget.missed(block[0] ?? 0, BLOCK_PAGES)).toBe(false);
    expect(budget.left).toBe(left + 32 * BLOCK_PAGES);
    expect(budget.missedPages).toBe(BLOCK_PAGES);
  });
});
