import { describe, expect, it } from 'vitest';
import { hasPageData, PAGE_BYTES, PAGE_WIRE_MAX_PAGES, pageDataOffset } from '@snowflock/protocol/pages';
import { ArrivedRun } from '../src/memtap/arrived-run.ts';

/** What was delivered: region and pages, each page's first byte with it. */
function collector() {
  const runs: { region: number; pages: [page: number, byte: number][] }[] = [];
  const run = new ArrivedRun({
    deliver: (frame, bytes, offset) => {
      const pages = Array.from({ length: frame.pageCount }, (_, index): [number, number] => {
        expect(hasPageData(bytes, offset, index)).toBe(true);
        const at = offset + pageDataOffset(frame.pageCount) + index * PAGE_BYTES;
        expect(bytes.subarray(at, at + PAGE_BYTES)).toEqual(Buffer.alloc(PAGE_BYTES, bytes[at]));
        return [frame.firstPage + index, bytes[at] ?? -1];
      });
      runs.push({ region: frame.region, pages });
    },
  });
  const add = (region: number, page: number): void =>
    run.add(region, page, Buffer.alloc(PAGE_BYTES, page & 0xff));
  return { run, runs, add };
}

describe('pages that came by multicast', () => {
  it('are delivered together while each follows the one before', () => {
    const { run, runs, add } = collector();
    for (const page of [7, 8, 9]) add(0, page);
    expect(runs).toEqual([]);
    add(1, 10);
    add(1, 12);
    run.flush();
    expect(runs).toEqual([
      {
        region: 0,
        pages: [
          [7, 7],
          [8, 8],
          [9, 9],
        ],
      },
      { region: 1, pages: [[10, 10]] },
      { region: 1, pages: [[12, 12]] },
    ]);
  });

  it('are no more than a frame holds', () => {
    const { run, runs, add } = collector();
    for (let page = 0; page < PAGE_WIRE_MAX_PAGES + 1; page++) add(0, page);
    run.flush();
    expect(runs.map(({ pages }) => pages.length)).toEqual([PAGE_WIRE_MAX_PAGES, 1]);
  });

  it('are delivered without anybody asking, once', async () => {
    const { run, runs, add } = collector();
    add(0, 3);
    await new Promise((resolve) => setImmediate(resolve));
    run.flush();
    expect(runs).toEqual([{ region: 0, pages: [[3, 3]] }]);
  });
});
