// Pages that need not be fetched because another memtap of this host holds them: that of an earlier fork of the same VM, which has not changed
// them since. They are copied from its file in the background, those that will be needed first before the others.
//
// A page is claimed just before it is copied, so a READ that comes first is answered by the source as ever, and one that comes meanwhile
// waits for the copy. Nothing depends on it: what cannot be read is given back, and fetched when it is needed.

import { open } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import {
  PAGE_BYTES,
  PAGE_FRAME_HEADER_BYTES,
  createPageFrame,
  pageBitmapBytes,
  pageDataOffset,
  type PageFrame,
  PageFrameType,
  PageRegion,
} from '@snowflock/protocol/pages';
import type { PresenceMap } from '../presence-map.ts';
import { prefetchRuns, type Run } from './prefetch.ts';

/** 256 KiB at a time: soon done when a READ waits for one of its pages. */
const RUN_PAGES = 64;
/** Runs on their way to the page cache; more would fill the store queue, which drops what it has no room for. */
const QUEUED_MAX = 8;
const QUEUE_POLL_MS = 1;

export interface NearPagesOptions {
  /** The RAM file that the other memtap serves. */
  readonly path: string;
  readonly pages: PresenceMap;
  /** Whether the page is wanted, and was claimed by this call. */
  readonly claim: (page: number) => boolean;
  readonly deliver: (frame: PageFrame, bytes: Buffer) => void;
  readonly giveBack: (run: Run) => void;
  /** Runs that wait for the page cache. */
  readonly queued: () => number;
  readonly closed: () => boolean;
}

/** Resolves when all of them are here, or cannot be read. */
export async function copyNearPages(options: NearPagesOptions, first: readonly number[]): Promise<void> {
  const { pages, claim, queued, closed } = options;
  await using file = await open(options.path, 'r');
  const bytes = Buffer.allocUnsafe(pageDataOffset(RUN_PAGES) + RUN_PAGES * PAGE_BYTES);
  const isNear = (page: number): boolean => pages.has(page) && claim(page);
  for (const part of partsOf(pages, first)) {
    // every page of a run is near: none is taken along
    const runs = prefetchRuns(part, { wanted: isNear, maxRunPages: RUN_PAGES, maxGapPages: 0 });
    let done = 0;
    try {
      for (const run of runs) {
        while (queued() > QUEUED_MAX && !closed()) await sleep(QUEUE_POLL_MS);
        if (closed()) return;
        const length = run.pageCount * PAGE_BYTES;
        const at = pageDataOffset(run.pageCount);
        const { bytesRead } = await file.read(bytes, at, length, run.firstPage * PAGE_BYTES);
        if (bytesRead !== length) throw new Error(`${options.path} ends early`);
        options.deliver(frameOf(run, bytes), bytes);
        done++;
      }
    } finally {
      for (const run of runs.slice(done)) options.giveBack(run);
    }
  }
}

/** Those needed first, then all, a few at a time: what is claimed should not wait long for its turn. */
function* partsOf(pages: PresenceMap, first: readonly number[]): Generator<number[]> {
  for (let at = 0; at < first.length; at += RUN_PAGES) yield first.slice(at, at + RUN_PAGES);
  for (let page = pages.next(0, true); page < pages.pageCount;) {
    const end = Math.min(pages.next(page, false), page + RUN_PAGES);
    yield Array.from({ length: end - page }, (_, index) => page + index);
    page = pages.next(end, true);
  }
}

/** As if it had come over the wire. */
function frameOf({ firstPage, pageCount }: Run, bytes: Buffer): PageFrame {
  const bitmap = bytes.subarray(
    PAGE_FRAME_HEADER_BYTES,
    PAGE_FRAME_HEADER_BYTES + pageBitmapBytes(pageCount),
  );
  bitmap.fill(0);
  for (let index = 0; index < pageCount; index++)
    bitmap[index >>> 3] = (bitmap[index >>> 3] ?? 0) | (1 << (index & 7));
  const frame = createPageFrame();
  return {
    ...frame,
    type: PageFrameType.data,
    region: PageRegion.ram,
    firstPage,
    pageCount,
    dataPages: pageCount,
  };
}
