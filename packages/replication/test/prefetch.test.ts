import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { PageFrameType, PageRegion, PAGE_FLAG_URGENT, createPageFrame } from '@snowflock/protocol';
import { prefetchRuns } from '../src/memtap/prefetch.ts';
import { WAKE_UP_PAGES_MAX, WakeUpLog } from '../src/memserver/wake-up-log.ts';

const pagesOf = (runs: readonly { firstPage: number; pageCount: number }[]): number[] =>
  runs.flatMap(({ firstPage, pageCount }) => Array.from({ length: pageCount }, (_, i) => firstPage + i));

describe('prefetch runs', () => {
  it('join near pages, fetch what lies between along, and keep distant groups in order of need', () => {
    const far = Array.from({ length: 256 }, (_, i) => 100_000 + 5 * i);
    const runs = prefetchRuns([...far, 3, 9, 1, 2, 6], { wanted: () => true, maxRunPages: 64 });
    expect(runs[0]).toEqual({ firstPage: 100_000, pageCount: 1 });
    expect(runs.at(-1)).toEqual({ firstPage: 1, pageCount: 9 });
  });

  it('ask for each wanted page exactly once', () => {
    fc.assert(
      fc.property(
        fc.array(fc.nat(500), { maxLength: 800 }),
        fc.integer({ min: 8, max: 64 }),
        (pages, maxRunPages) => {
          const claimed = new Set<number>();
          const wanted = (page: number): boolean =>
            page % 5 !== 0 && !claimed.has(page) && !!claimed.add(page);
          const runs = prefetchRuns(pages, { wanted, maxRunPages });
          const asked = pagesOf(runs);
          for (const page of claimed) expect(asked.filter((one) => one === page)).toHaveLength(1);
          for (const page of pages) expect(claimed.has(page)).toBe(page % 5 !== 0);
          for (const { pageCount } of runs) expect(pageCount).toBeLessThanOrEqual(maxRunPages);
        },
      ),
    );
  });
});

describe('the wake-up log', () => {
  const read = (firstPage: number, pageCount = 1, urgent = true, region: number = PageRegion.ram) => ({
    ...createPageFrame(),
    type: PageFrameType.read,
    flags: urgent ? PAGE_FLAG_URGENT : 0,
    region,
    firstPage,
    pageCount,
  });

  it('keeps what guests waited for, once, in order', () => {
    const log = new WakeUpLog();
    for (const frame of [
      read(9),
      read(4, 2),
      read(9),
      read(70, 1, false),
      read(80, 1, true, PageRegion.disk),
    ])
      log.note(frame);
    expect(log.pages).toEqual([9, 4, 5]);
  });

  it('is bounded', () => {
    const log = new WakeUpLog();
    for (let page = 0; page < 4 * WAKE_UP_PAGES_MAX; page++) log.note(read(page));
    expect(log.pages).toHaveLength(WAKE_UP_PAGES_MAX);
  });
});
