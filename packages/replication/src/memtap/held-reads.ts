// The READs that wait in the main thread, one per slot, and how they are answered.
//
//   free --adopted from a slot--> held --all pages filled--> answered --parts under way all came--> free
//                                   '--source lost (EIO), asker being killed (EINTR)--> answered
//
// A HeldRead is made once per slot and reused. A single page is copied behind a header that is kept for it, larger READs are put
// together in a borrowed buffer that has room for one: copying a page costs less than Node's writev, which looks at each piece.

import { writeSync } from 'node:fs';
import { PAGE_BYTES } from '@snowflock/protocol/pages';
import { FUSE_MAX_READ_BYTES, FUSE_OUT_HEADER, writeOutHeader } from './fuse/protocol.ts';

/** Largest READ plus a page: an unaligned READ touches one page more. */
const MAX_PAGES = FUSE_MAX_READ_BYTES / PAGE_BYTES + 1;
const ASSEMBLY_BYTES = FUSE_OUT_HEADER + MAX_PAGES * PAGE_BYTES;
const ASSEMBLY_MAX_FREE = 16;

export class HeldRead {
  readonly slot: number;
  /** Not answered yet. */
  waiting = false;
  /** Nobody waits for it but a relay that fetches ahead for others. */
  ahead = false;
  uniqueLow = 0;
  uniqueHigh = 0;
  region = 0;
  offset = 0;
  sizeBytes = 0;
  firstPage = 0;
  pageCount = 0;
  pid = 0;
  timeUs = 0;
  interrupted = false;
  missing = 0;
  /** Demand lane: parts under way, one bit each, and the range of the extra pages. */
  pendingParts = 0;
  extraFirst = 0;
  extraCount = 0;
  generation = 0;
  /** Position in the list of waiting reads. */
  position = -1;
  buffer: Buffer | undefined;
  filled: Uint8Array | undefined;

  constructor(slot: number) {
    this.slot = slot;
  }

  get single(): boolean {
    return this.pageCount === 1 && this.sizeBytes === PAGE_BYTES;
  }

  overlaps(region: number, first: number, end: number): boolean {
    return this.region === region && first < this.firstPage + this.pageCount && this.firstPage < end;
  }

  isFilled(page: number): boolean {
    return this.filled?.[page - this.firstPage] === 1;
  }
}

export class ReadAnswerer {
  readonly #fd: number;
  /** The header and one page. */
  readonly #reply = Buffer.alloc(FUSE_OUT_HEADER + PAGE_BYTES);
  readonly #free: Buffer[] = [];

  constructor(fuseFd: number) {
    this.#fd = fuseFd;
  }

  /** Gives a READ of several pages its buffer. */
  prepare(held: HeldRead): void {
    if (held.single) return;
    held.buffer = this.#free.pop() ?? Buffer.allocUnsafeSlow(ASSEMBLY_BYTES);
    held.filled ??= new Uint8Array(MAX_PAGES);
    held.filled.fill(0, 0, held.pageCount);
  }

  /** Puts one page in. True when the READ now has all its pages. */
  fill(held: HeldRead, page: number, from: Buffer, offset: number): boolean {
    const index = page - held.firstPage;
    if (held.buffer === undefined || held.filled === undefined || held.filled[index] === 1)
      return held.missing === 0;
    from.copy(held.buffer, FUSE_OUT_HEADER + index * PAGE_BYTES, offset, offset + PAGE_BYTES);
    held.filled[index] = 1;
    held.missing--;
    return held.missing === 0;
  }

  answerAssembled(held: HeldRead): void {
    if (held.buffer === undefined) throw new Error('a READ of several pages has a buffer while it is held');
    // the header goes where the first page's bytes before the READ's would be
    const start = held.offset - held.firstPage * PAGE_BYTES;
    this.#write(held, held.buffer.subarray(start, start + FUSE_OUT_HEADER + held.sizeBytes), 0);
    this.forget(held);
  }

  /** Answers a READ of one page, with the one at `offset`. */
  answerPage(held: HeldRead, from: Buffer, offset: number): void {
    from.copy(this.#reply, FUSE_OUT_HEADER, offset, offset + PAGE_BYTES);
    this.#write(held, this.#reply, 0);
  }

  answerError(held: HeldRead, errno: number): void {
    this.#write(held, this.#reply.subarray(0, FUSE_OUT_HEADER), errno);
    this.forget(held);
  }

  /** Takes the READ's buffer back. */
  forget(held: HeldRead): void {
    if (held.buffer !== undefined && this.#free.length < ASSEMBLY_MAX_FREE) this.#free.push(held.buffer);
    held.buffer = undefined;
  }

  #write(held: HeldRead, reply: Buffer, errno: number): void {
    writeOutHeader(reply, reply.length, -errno);
    reply.writeInt32LE(held.uniqueLow, 8);
    reply.writeInt32LE(held.uniqueHigh, 12);
    try {
      writeSync(this.#fd, reply, 0, reply.length);
    } catch (error) {
      // ENOENT: the asker is gone. ENODEV, ECONNABORTED, ENOTCONN: the mount is; the read worker notices too.
      const { code } = error as NodeJS.ErrnoException;
      if (code !== 'ENOENT' && code !== 'ENODEV' && code !== 'ECONNABORTED' && code !== 'ENOTCONN')
        throw error;
    }
  }
}
