// What a memserver serves: one snapshot, that is a frozen memory and maybe a frozen disk.
//
//   empty --freeze--> frozen --lease lost, read failed--> lost
//
// Fills DATA frames from it. RAM is read at once, in the caller's turn; disk pages come from qemu-nbd and take a while.
// Invariant: a frame is complete and consistent before it leaves here; a page that is all zero is never in one.

import {
  PAGE_BYTES,
  PAGE_FRAME_HEADER_BYTES,
  pageBitmapBytes,
  pageDataOffset,
  PageErrorCode,
  PageFrameType,
  PageRegion,
  type PageFrame,
  writePageFrame,
} from '@snowflock/protocol/pages';
import { isZeroPage } from '../zero-page.ts';
import type { FrozenDisk } from './frozen-disk.ts';
import type { FrozenMemory } from './frozen-memory.ts';

export interface SnapshotCounters {
  pagesRead: number;
  zeroPages: number;
  holePages: number;
}

export class Snapshot {
  readonly counters: SnapshotCounters = { pagesRead: 0, zeroPages: 0, holePages: 0 };
  #memory: FrozenMemory | undefined;
  #disk: FrozenDisk | undefined;
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

  get memory(): FrozenMemory | undefined {
    return this.#memory;
  }

  get lostReason(): string | undefined {
    return this.#lostReason;
  }

  install(options: { readonly memory: FrozenMemory; readonly disk: FrozenDisk | undefined }): void {
    this.#memory = options.memory;
    this.#disk = options.disk;
  }

  /** From now on every read fails. */
  markLost(reason: string): void {
    this.#lostReason ??= reason;
  }

  /** What is wrong with a READ, or undefined. */
  refuse(read: Readonly<PageFrame>): PageErrorCode | undefined {
    if (this.#lostReason !== undefined) return PageErrorCode.sourceLost;
    if (this.#memory === undefined) return PageErrorCode.notFrozen;
    if (read.region === PageRegion.disk && this.#disk === undefined) return PageErrorCode.noRegion;
    const pages =
      read.region === PageRegion.ram ? this.#memory.presence.pageCount : (this.#disk?.pageCount ?? 0);
    return read.firstPage + read.pageCount > pages ? PageErrorCode.outOfRange : undefined;
  }

  /** Fills `target` with the DATA frame that answers a RAM read; returns its length. Throws 'source-lost'. */
  fillRam(target: Buffer, read: Readonly<PageFrame>): number {
    const memory = this.#memory;
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
      at = this.#compact(target, { from: at, firstIndex: page - firstPage, pageCount: stop - page });
      page = memory.presence.next(stop, true, end);
    }
    this.counters.holePages += pageCount - present;
    return this.#finish(target, read, at);
  }

  /** Fills `target` with the DATA frame that answers a disk read. Rejects when the disk server is gone. */
  async fillDisk(target: Buffer, read: Readonly<PageFrame>): Promise<number> {
    const disk = this.#disk;
    if (disk === undefined) throw new Error('refuse() was not asked');
    const from = pageDataOffset(read.pageCount);
    await disk.read(target, { offset: from, firstPage: read.firstPage, pageCount: read.pageCount });
    clearBitmap(target, read.pageCount);
    const at = this.#compact(target, { from, firstIndex: 0, pageCount: read.pageCount });
    return this.#finish(target, read, at);
  }

  async close(): Promise<void> {
    this.#memory?.close();
    await this.#disk?.close();
  }

  /** Drops zero pages from the run of pages at `from` and sets the bits of the others. Returns the end of what is left. */
  #compact(target: Buffer, run: { from: number; firstIndex: number; pageCount: number }): number {
    let to = run.from;
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
