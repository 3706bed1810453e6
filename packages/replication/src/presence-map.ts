// The presence map: which 4 KiB pages of a frozen VM's memory exist. A page that is not in it is a hole: all zero, never
// read at the source (reading would create it) and never on the wire.
//
// Serialised form: 'SFPM', u8 version 1, u8 method (0 bitmap, 1 run lengths), u16 zero, u32 pageCount, then zstd of either
// the bitmap (little-endian words) or of LEB128 run lengths that alternate absent, present, absent ... and sum up to
// pageCount. The encoder takes the smaller. The decoder allocates by pageCount only after it was checked against the
// caller's limit, and the decompressor is capped by it too.

import { constants, zstdCompressSync, zstdDecompressSync } from 'node:zlib';
import { SnowflockError } from '@snowflock/protocol/pages';

const MAGIC = 0x4d504653;
const VERSION = 1;
const HEADER_BYTES = 12;
const METHOD_BITMAP = 0;
const METHOD_RUNS = 1;
/** 16 TiB of 4 KiB pages: page numbers are u32 on the wire. */
export const PRESENCE_MAX_PAGES = 2 ** 32;
/** More runs than this are never smaller than the bitmap would be worth; bounds the run encoder's scratch memory. */
const RUNS_MAX_BYTES = 4 * 1024 * 1024;
/** Level 1: the map is made while the fork waits for it, and higher levels win little on bitmaps. */
const ZSTD_OPTIONS = { params: { [constants.ZSTD_c_compressionLevel]: 1 } };

export class PresenceMap {
  readonly pageCount: number;
  readonly #words: Uint32Array;
  /** Pages present before each word; made when first asked for. */
  #ranks: Uint32Array | undefined;

  constructor(pageCount: number) {
    if (!Number.isSafeInteger(pageCount) || pageCount < 0 || pageCount > PRESENCE_MAX_PAGES)
      throw new SnowflockError('bad-request', `a presence map cannot have ${pageCount} pages`);
    this.pageCount = pageCount;
    this.#words = new Uint32Array(Math.ceil(pageCount / 32));
  }

  /** A map of pages that are all there. */
  static full(pageCount: number): PresenceMap {
    const map = new PresenceMap(pageCount);
    map.#setRun(0, pageCount);
    return map;
  }

  has(page: number): boolean {
    if (page >= this.pageCount) return false;
    return (((this.#words[page >>> 5] ?? 0) >>> (page & 31)) & 1) === 1;
  }

  set(page: number): void {
    if (page >= this.pageCount) throw new RangeError(`page ${page} of ${this.pageCount}`);
    const word = page >>> 5;
    this.#words[word] = (this.#words[word] ?? 0) | (1 << (page & 31));
    this.#ranks = undefined;
  }

  /**
   * Marks the pages that `entries` of a page map say the process has: anonymous memory that is present or swapped out. A page of a file
   * that is mapped privately and was only read is none, unless `filePages`.
   */
  setFromPagemap(firstPage: number, entries: Uint32Array, { filePages = false } = {}): void {
    const count = entries.length >>> 1;
    if (firstPage + count > this.pageCount)
      throw new RangeError(`pages ${firstPage}+${count} of ${this.pageCount}`);
    const words = this.#words;
    this.#ranks = undefined;
    for (let index = 0; index < count; index++) {
      // bit 63 present, bit 62 swapped, bit 61 of a file or shared (Documentation/admin-guide/mm/pagemap.rst)
      const flags = (entries[2 * index + 1] ?? 0) >>> 29;
      if ((flags & 0b110) === 0 || ((flags & 0b011) === 0b001 && !filePages)) continue;
      const page = firstPage + index;
      words[page >>> 5] = (words[page >>> 5] ?? 0) | (1 << (page & 31));
    }
  }

  /** Adds every page of `other`, which covers as many pages. */
  union(other: PresenceMap): void {
    this.#ranks = undefined;
    if (other.pageCount !== this.pageCount)
      throw new SnowflockError(
        'bad-request',
        `presence maps of ${this.pageCount} and ${other.pageCount} pages`,
      );
    for (let word = 0; word < this.#words.length; word++)
      this.#words[word] = (this.#words[word] ?? 0) | (other.#words[word] ?? 0);
  }

  /** The pages of this map that are not in `other`, which covers as many. */
  without(other: PresenceMap): PresenceMap {
    const rest = new PresenceMap(this.pageCount);
    rest.union(this);
    for (let word = 0; word < rest.#words.length; word++)
      rest.#words[word] = (rest.#words[word] ?? 0) & ~(other.#words[word] ?? 0);
    return rest;
  }

  /** The pages that are in both maps, which cover as many. */
  common(other: PresenceMap): PresenceMap {
    return this.without(this.without(other));
  }

  /** How many pages before `page` are present: where it lies among them. */
  rank(page: number): number {
    this.#ranks ??= this.#countRanks();
    const word = page >>> 5;
    const below = (this.#words[word] ?? 0) & ((1 << (page & 31)) - 1);
    return (this.#ranks[word] ?? 0) + popcount(below);
  }

  #countRanks(): Uint32Array {
    const ranks = new Uint32Array(this.#words.length + 1);
    let total = 0;
    for (const [index, word] of this.#words.entries()) {
      ranks[index] = total;
      total += popcount(word);
    }
    ranks[this.#words.length] = total;
    return ranks;
  }

  /** How many pages are present. */
  count(): number {
    let total = 0;
    for (const word of this.#words) total += popcount(word);
    return total;
  }

  /** The first page in [from, limit) whose presence is `present`, or `limit` (the last page's end when not given). */
  next(from: number, present: boolean, limit: number = this.pageCount): number {
    const skip = present ? 0 : 0xffffffff;
    const end = Math.min(limit, this.pageCount);
    let page = from;
    while (page < end) {
      if ((page & 31) === 0 && (this.#words[page >>> 5] ?? 0) === skip) {
        page += 32;
        continue;
      }
      if (this.has(page) === present) return page;
      page++;
    }
    return end;
  }

  encode(): Buffer {
    const header = Buffer.alloc(HEADER_BYTES);
    header.writeUInt32LE(MAGIC, 0);
    header[4] = VERSION;
    header.writeUInt32LE(this.pageCount % PRESENCE_MAX_PAGES, 8);
    const words = this.#words;
    const bitmap = zstdCompressSync(
      Buffer.from(words.buffer, words.byteOffset, words.byteLength),
      ZSTD_OPTIONS,
    );
    const runs = this.#encodeRuns();
    const packedRuns = runs === undefined ? undefined : zstdCompressSync(runs, ZSTD_OPTIONS);
    if (packedRuns !== undefined && packedRuns.length < bitmap.length) {
      header[5] = METHOD_RUNS;
      return Buffer.concat([header, packedRuns]);
    }
    header[5] = METHOD_BITMAP;
    return Buffer.concat([header, bitmap]);
  }

  #encodeRuns(): Buffer | undefined {
    const out = Buffer.allocUnsafe(Math.min(RUNS_MAX_BYTES, this.#words.byteLength + 16));
    let at = 0;
    let page = 0;
    let present = false;
    while (page < this.pageCount) {
      const end = this.next(page, !present);
      let length = end - page;
      if (at + 5 > out.length) return undefined;
      do {
        const low = length & 0x7f;
        length = Math.floor(length / 128);
        out[at++] = length > 0 ? low | 0x80 : low;
      } while (length > 0);
      page = end;
      present = !present;
    }
    return out.subarray(0, at);
  }

  /** Throws 'bad-request' on anything that encode() does not produce, or a map of more than `maxPages` pages. */
  static decode(bytes: Buffer, options: { readonly maxPages: number }): PresenceMap {
    if (bytes.length < HEADER_BYTES || bytes.readUInt32LE(0) !== MAGIC || bytes[4] !== VERSION)
      throw malformed('not a presence map of version 1');
    const pageCount = bytes.readUInt32LE(8);
    if (pageCount > options.maxPages)
      throw malformed(`${pageCount} pages, at most ${options.maxPages} expected`);
    if (bytes.readUInt16LE(6) !== 0) throw malformed('reserved bytes are not zero');
    const map = new PresenceMap(pageCount);
    const body = bytes.subarray(HEADER_BYTES);
    const method = bytes[5];
    if (method === METHOD_BITMAP) map.#fillFromBitmap(inflate(body, map.#words.byteLength));
    else if (method === METHOD_RUNS) map.#fillFromRuns(inflate(body, map.#words.byteLength + 16));
    else throw malformed(`method ${method ?? 'missing'} is unknown`);
    return map;
  }

  #fillFromBitmap(bitmap: Buffer): void {
    const words = this.#words;
    if (bitmap.length !== words.byteLength) throw malformed(`a bitmap of ${bitmap.length} bytes`);
    bitmap.copy(Buffer.from(words.buffer, words.byteOffset, words.byteLength));
    const tail = this.pageCount & 31;
    if (tail !== 0 && (words[words.length - 1] ?? 0) >>> tail !== 0)
      throw malformed('bits behind the last page');
  }

  #fillFromRuns(runs: Buffer): void {
    let at = 0;
    let page = 0;
    let present = false;
    while (at < runs.length) {
      let length = 0;
      let scale = 1;
      for (;;) {
        const byte = runs[at++];
        if (byte === undefined || scale > 2 ** 28) throw malformed('a run length is cut off');
        length += (byte & 0x7f) * scale;
        if (byte < 0x80) break;
        scale *= 128;
      }
      if (page + length > this.pageCount) throw malformed('runs pass the last page');
      if (present) this.#setRun(page, page + length);
      page += length;
      present = !present;
    }
    if (page !== this.pageCount) throw malformed(`runs cover ${page} of ${this.pageCount} pages`);
  }

  #setRun(from: number, to: number): void {
    let page = from;
    while (page < to) {
      if ((page & 31) === 0 && to - page >= 32) {
        this.#words[page >>> 5] = 0xffffffff;
        page += 32;
      } else {
        this.set(page++);
      }
    }
  }
}

function inflate(body: Buffer, maxBytes: number): Buffer {
  if (maxBytes === 0) return Buffer.alloc(0);
  try {
    return zstdDecompressSync(body, { maxOutputLength: maxBytes });
  } catch (error) {
    throw new SnowflockError('bad-request', 'presence map: its compressed part is damaged or too long', {
      cause: error,
    });
  }
}

function popcount(value: number): number {
  let v = value - ((value >>> 1) & 0x55555555);
  v = (v & 0x33333333) + ((v >>> 2) & 0x33333333);
  return Math.imul((v + (v >>> 4)) & 0x0f0f0f0f, 0x01010101) >>> 24;
}

function malformed(what: string): SnowflockError {
  return new SnowflockError('bad-request', `presence map: ${what}`);
}
