// Pages that need not be fetched because another memtap of this host holds them: that of an earlier fork of the same VM, which has not changed
// them since. They are copied from its file in the background, those that will be needed first before the others.
//
// A page is claimed just before it is copied, so a READ that comes first is answered by the source as ever, and one that comes meanwhile
// waits for the copy. Nothing depends on it: what cannot be read is given back, and fetched when it is needed.

import { open, type FileHandle } from 'node:fs/promises';
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
import type { Delivery } from './delivery.ts';
import { prefetchRuns, type Run } from './prefetch.ts';
import type { SharedState } from './shared-state.ts';
import type { StoreQueue } from './store-queue.ts';

/** 256 KiB at a time: soon done when a READ waits for one of its pages. */
const RUN_PAGES = 64;
/** Runs on their way to the page cache; more would fill the store queue, which drops what it has no room for. */
const QUEUED_MAX = 8;
const QUEUE_POLL_MS = 1;

/** Of another memtap of this host, and which of its pages are the same here. */
export interface NearFile {
  readonly path: string;
  readonly pages: PresenceMap;
}

export interface NearPagesOptions {
  readonly state: SharedState;
  readonly queue: StoreQueue;
  readonly delivery: Delivery;
  /** Takes what the read worker has posted. */
  readonly drain: () => void;
  /** Has whatever READs wait for asked for that nobody fetches. */
  readonly resolveAll: () => void;
}

export class NearPages {
  readonly #options: NearPagesOptions;
  /** Copied so far. */
  pages = 0;
  #closed = false;

  constructor(options: NearPagesOptions) {
    this.#options = options;
  }

  close(): void {
    this.#closed = true;
  }

  /** Resolves when all of them are here, or cannot be read. */
  async copy(near: NearFile, first: readonly number[]): Promise<void> {
    try {
      await using file = await open(near.path, 'r');
      const bytes = Buffer.allocUnsafe(pageDataOffset(RUN_PAGES) + RUN_PAGES * PAGE_BYTES);
      for (const part of partsOf(near.pages, first)) {
        if (this.#closed) return;
        await this.#copyPart(part, { file, bytes, near });
      }
    } catch (error) {
      if (!this.#closed)
        console.error(
          `memtap: ${this.pages} pages were copied from ${near.path}, others are fetched:`,
          error,
        );
    }
  }

  async #copyPart(
    part: readonly number[],
    { file, bytes, near }: { file: FileHandle; bytes: Buffer; near: NearFile },
  ): Promise<void> {
    const { state, queue, delivery, drain, resolveAll } = this.#options;
    const ram = state.statesOf(PageRegion.ram);
    const wanted = (page: number): boolean => near.pages.has(page) && state.claimRemote(ram, page);
    // every page of a run is near: none is taken along
    const runs = prefetchRuns(part, { wanted, maxRunPages: RUN_PAGES, maxGapPages: 0 });
    let done = 0;
    try {
      for (const run of runs) {
        while (queue.depth > QUEUED_MAX && !this.#closed) await sleep(QUEUE_POLL_MS);
        if (this.#closed) return;
        const length = run.pageCount * PAGE_BYTES;
        const at = pageDataOffset(run.pageCount);
        const { bytesRead } = await file.read(bytes, at, length, run.firstPage * PAGE_BYTES);
        if (bytesRead !== length) throw new Error('it ends early');
        drain();
        this.pages += delivery.deliver(frameOf(run, bytes), bytes, 0);
        done++;
      }
    } finally {
      const left = runs.slice(done);
      for (const { firstPage, pageCount } of left)
        for (let page = firstPage; page < firstPage + pageCount; page++) state.unclaim(ram, page);
      if (left.length > 0) resolveAll();
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
