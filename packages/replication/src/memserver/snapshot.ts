// What a memserver serves: one snapshot, that is a frozen memory, of a clone what lies under it, and maybe a frozen disk.
//
//   empty --freeze--> frozen --lease lost, read failed--> lost
//
// Fills DATA frames from it. A process's own memory is read at once, in the caller's turn; disk pages come from qemu-nbd, a clone's
// unwritten pages from its memtap, and take a while.
// Invariant: a frame is complete and consistent before it leaves here; a page that is all zero is never in one.

import {
  PAGE_BYTES,
  PAGE_FLAG_URGENT,
  PAGE_FRAME_HEADER_BYTES,
  pageBitmapBytes,
  pageDataOffset,
  PageErrorCode,
  PageFrameType,
  PageRegion,
  REHEARSAL_PAGES,
  type PageFrame,
  writePageFrame,
} from '@snowflock/protocol/pages';
import { PresenceMap } from '../presence-map.ts';
import { isZeroPage } from '../zero-page.ts';
import { openRehearsalMemory } from './rehearsal-memory.ts';
import type { UpstreamMemory } from './upstream-memory.ts';

/** Which pages, into what. */
export interface PageRun {
  readonly offset: number;
  readonly firstPage: number;
  readonly pageCount: number;
  /** Nobody waits for them yet. */
  readonly ahead?: boolean;
}

/** A frozen process's memory, or a checkpoint's file of it. */
export interface SnapshotMemory {
  readonly presence: PresenceMap;
  /** Of pages that are all present. Throws 'source-lost'. */
  read(target: Buffer, run: PageRun): void;
  close(): void;
}

/** A frozen disk, or a checkpoint's file of it. */
export interface SnapshotDisk {
  readonly pageCount: number;
  read(target: Buffer, run: PageRun): Promise<void>;
  close(): Promise<void>;
}

export interface SnapshotContent {
  readonly memory: SnapshotMemory;
  /** What lies under it. */
  readonly upstream?: UpstreamMemory | undefined;
  readonly disk: SnapshotDisk | undefined;
}

export interface SnapshotCounters {
  pagesRead: number;
  zeroPages: number;
  holePages: number;
}

export class Snapshot {
  readonly counters: SnapshotCounters = { pagesRead: 0, zeroPages: 0, holePages: 0 };
  #memory: SnapshotMemory | undefined;
  #upstream: UpstreamMemory | undefined;
  #presence = new PresenceMap(0);
  #disk: SnapshotDisk | undefined;
  readonly #rehearsal = openRehearsalMemory();
  #lostReason: string | undefined;
  readonly #header: PageFrame = {
    length: 0,
    type: PageFrameType.data,
    region: 0,
    flags: 0,
    pageCount: 0,
    dataPages: 0,
    requestId: 0,
    firstPage: 0,
  };

  get memory(): SnapshotMemory | undefined {
    return this.#memory;
  }

  get disk(): SnapshotDisk | undefined {
    return this.#disk;
  }

  get lostReason(): string | undefined {
    return this.#lostReason;
  }

  /** Which pages of RAM exist, wherever they are. */
  get presence(): PresenceMap {
    return this.#presence;
  }

  /** Reads that this process cannot end before. */
  get readsUnderWay(): number {
    return this.#upstream?.readsUnderWay ?? 0;
  }

  install(options: SnapshotContent): void {
    this.#memory = options.memory;
    this.#upstream = options.upstream;
    this.#presence = options.memory.presence;
    if (options.upstream) {
      this.#presence = new PresenceMap(options.memory.presence.pageCount);
      this.#presence.union(options.memory.presence);
      this.#presence.union(options.upstream.presence);
    }
    this.#disk = options.disk;
  }

  /** From now on every read fails. */
  markLost(reason: string): void {
    this.#lostReason ??= reason;
  }

  /** What is wrong with a READ, or undefined. */
  refuse(read: Readonly<PageFrame>): PageErrorCode | undefined {
    if (this.#lostReason !== undefined) return PageErrorCode.sourceLost;
    if (read.region === PageRegion.rehearsal)
      return read.firstPage + read.pageCount > REHEARSAL_PAGES ? PageErrorCode.outOfRange : undefined;
    if (this.#memory === undefined) return PageErrorCode.notFrozen;
    if (read.region === PageRegion.disk && this.#disk === undefined) return PageErrorCode.noRegion;
    const pages = read.region === PageRegion.ram ? this.#presence.pageCount : (this.#disk?.pageCount ?? 0);
    return read.firstPage + read.pageCount > pages ? PageErrorCode.outOfRange : undefined;
  }

  /** Whether an answer takes more than a copy, so that `fill` has to make it. */
  isSlow({ region, firstPage, pageCount }: Readonly<PageFrame>): boolean {
    if (region !== PageRegion.ram) return region === PageRegion.disk;
    const end = firstPage + pageCount;
    return this.#upstream !== undefined && this.#upstream.presence.next(firstPage, true, end) < end;
  }

  /** Fills `target` with the DATA frame that answers a read that is not slow; returns its length. Throws 'source-lost'. */
  fillMemory(target: Buffer, read: Readonly<PageFrame>): number {
    const memory = read.region === PageRegion.rehearsal ? this.#rehearsal : this.#memory;
    if (memory === undefined) throw new Error('refuse() was not asked');
    const { firstPage, pageCount } = read;
    const end = firstPage + pageCount;
    clearBitmap(target, pageCount);
    let at = pageDataOffset(pageCount);
    let page = memory.presence.next(firstPage, true, end);
    let present = 0;
    while (page < end) {
      const stop = memory.presence.next(page, false, end);
      memory.read(target, { offset: at, firstPage: page, pageCount: stop - page });
      present += stop - page;
      at = this.#compact(target, { from: at, to: at, firstIndex: page - firstPage, pageCount: stop - page });
      page = memory.presence.next(stop, true, end);
    }
    this.counters.holePages += pageCount - present;
    return this.#finish(target, read, at);
  }

  /**
   * Fills `target` with the DATA frame that answers a slow read. Rejects when the disk server is gone, and with 'source-lost' when the
   * memtap is; `target` may then still be written to.
   */
  fill(target: Buffer, read: Readonly<PageFrame>): Promise<number> {
    return read.region === PageRegion.disk ? this.#fillDisk(target, read) : this.#fillMixed(target, read);
  }

  /** Each page first comes to its own place in the frame, from wherever it is; then those that are zero are left out. */
  async #fillMixed(target: Buffer, read: Readonly<PageFrame>): Promise<number> {
    const { firstPage, pageCount } = read;
    const from = pageDataOffset(pageCount);
    const placeOf = (page: number): number => from + (page - firstPage) * PAGE_BYTES;
    const ahead = (read.flags & PAGE_FLAG_URGENT) === 0;
    await this.readMemory(target, { offset: from, firstPage, pageCount, ahead });
    clearBitmap(target, pageCount);
    let at = from;
    let present = 0;
    for (const { page, count } of runsOf(this.#presence, read)) {
      const run = { from: placeOf(page), to: at, firstIndex: page - firstPage, pageCount: count };
      at = this.#compact(target, run);
      present += count;
    }
    this.counters.holePages += pageCount - present;
    return this.#finish(target, read, at);
  }

  /** Reads what exists of a run of pages, each to its own place; the places of the others are left as they are. */
  async readMemory(target: Buffer, run: PageRun): Promise<void> {
    const [memory, upstream] = [this.#memory, this.#upstream];
    if (memory === undefined) throw new Error('there is no snapshot');
    const { ahead = false } = run;
    const at = (page: number): number => run.offset + (page - run.firstPage) * PAGE_BYTES;
    const coming: Promise<void>[] = [];
    if (upstream)
      for (const { page, count } of runsOf(upstream.presence, run))
        coming.push(upstream.read(target, { offset: at(page), firstPage: page, pageCount: count, ahead }));
    for (const { page, count } of runsOf(memory.presence, run))
      memory.read(target, { offset: at(page), firstPage: page, pageCount: count });
    await Promise.all(coming);
  }

  async #fillDisk(target: Buffer, read: Readonly<PageFrame>): Promise<number> {
    const disk = this.#disk;
    if (disk === undefined) throw new Error('refuse() was not asked');
    const from = pageDataOffset(read.pageCount);
    await disk.read(target, { offset: from, firstPage: read.firstPage, pageCount: read.pageCount });
    clearBitmap(target, read.pageCount);
    const at = this.#compact(target, { from, to: from, firstIndex: 0, pageCount: read.pageCount });
    return this.#finish(target, read, at);
  }

  async close(): Promise<void> {
    this.#memory?.close();
    this.#rehearsal.close();
    await this.#upstream?.close();
    await this.#disk?.close();
  }

  /** Moves the run of pages at `from` down to `to`, without those that are zero, and sets the bits of the others. Returns their end. */
  #compact(target: Buffer, run: { from: number; to: number; firstIndex: number; pageCount: number }): number {
    let { to } = run;
    for (let index = 0; index < run.pageCount; index++) {
      const at = run.from + index * PAGE_BYTES;
      if (isZeroPage(target, at)) {
        this.counters.zeroPages++;
        continue;
      }
      if (to !== at) target.copyWithin(to, at, at + PAGE_BYTES);
      const bit = run.firstIndex + index;
      const byte = PAGE_FRAME_HEADER_BYTES + (bit >>> 3);
      target[byte] = (target[byte] ?? 0) | (1 << (bit & 7));
      to += PAGE_BYTES;
    }
    this.counters.pagesRead += run.pageCount;
    return to;
  }

  #finish(target: Buffer, read: Readonly<PageFrame>, end: number): number {
    const header = this.#header;
    header.region = read.region;
    header.pageCount = read.pageCount;
    header.firstPage = read.firstPage;
    header.requestId = read.requestId;
    header.dataPages = (end - pageDataOffset(read.pageCount)) / PAGE_BYTES;
    writePageFrame(target, 0, header);
    return end;
  }
}

function clearBitmap(target: Buffer, pageCount: number): void {
  target.fill(0, PAGE_FRAME_HEADER_BYTES, PAGE_FRAME_HEADER_BYTES + pageBitmapBytes(pageCount));
}

/** The runs of pages that a map has within a read. */
function* runsOf(
  presence: PresenceMap,
  { firstPage, pageCount }: Pick<PageRun, 'firstPage' | 'pageCount'>,
): Generator<{ page: number; count: number }> {
  const end = firstPage + pageCount;
  for (let page = presence.next(firstPage, true, end); page < end;) {
    const stop = presence.next(page, false, end);
    yield { page, count: stop - page };
    page = presence.next(stop, true, end);
  }
}
