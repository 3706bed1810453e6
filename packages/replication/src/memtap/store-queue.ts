// The store queue: pages that arrived and that nobody waits for, on their way into the kernel's page cache.
//
// A ring of page data and a ring of entries in shared memory. The main thread appends, the store worker takes from the
// other end. The data of an entry stays valid until the main thread reuses it, so the main thread can answer a READ from
// an entry that the store worker is just working on: an answer never waits for a STORE.
//
// Invariant: tail <= head <= tail + ENTRIES; the data of entries [tail, head) does not overlap.

import { PAGE_BYTES } from '@snowflock/protocol/pages';

/** 16 MiB: a few full read-ahead windows. When it is full, prefetched pages are dropped; a later READ fetches them. */
export const STORE_QUEUE_PAGES = 4096;
export const STORE_QUEUE_ENTRIES = 1024;

const HEAD = 0;
const TAIL = 1;
const CLOSED = 2;
const CONTROL_WORDS = 4;
const ENTRY_WORDS = 4;
const REGION = 0;
const FIRST = 1;
const COUNT = 2;
const DATA_PAGE = 3;

export interface StoreQueueMemory {
  readonly words: SharedArrayBuffer;
  readonly data: SharedArrayBuffer;
}

export function allocateStoreQueue(): StoreQueueMemory {
  return {
    words: new SharedArrayBuffer((CONTROL_WORDS + STORE_QUEUE_ENTRIES * ENTRY_WORDS) * 4),
    data: new SharedArrayBuffer(STORE_QUEUE_PAGES * PAGE_BYTES),
  };
}

export class StoreQueue {
  readonly #words: Int32Array;
  readonly data: Buffer;
  /** Main thread: where the next entry's data goes. */
  #nextPage = 0;

  constructor(memory: StoreQueueMemory) {
    this.#words = new Int32Array(memory.words);
    this.data = Buffer.from(memory.data);
  }

  get depth(): number {
    return Atomics.load(this.#words, HEAD) - Atomics.load(this.#words, TAIL);
  }

  // main thread

  /** Copies a run of pages in. Returns false when there is no room. The pages' states have to be `queued` before. */
  push(run: { region: number; firstPage: number; pageCount: number; from: Buffer; offset: number }): boolean {
    const head = Atomics.load(this.#words, HEAD);
    const place = this.#place(run.pageCount, head);
    if (place < 0) return false;
    const entry = entryAt(head);
    run.from.copy(this.data, place * PAGE_BYTES, run.offset, run.offset + run.pageCount * PAGE_BYTES);
    this.#words[entry + REGION] = run.region;
    this.#words[entry + FIRST] = run.firstPage;
    this.#words[entry + COUNT] = run.pageCount;
    this.#words[entry + DATA_PAGE] = place;
    this.#nextPage = place + run.pageCount;
    Atomics.store(this.#words, HEAD, (head + 1) | 0);
    Atomics.notify(this.#words, HEAD);
    return true;
  }

  /** Where in the ring `pageCount` pages fit now, or -1. */
  #place(pageCount: number, head: number): number {
    const tail = Atomics.load(this.#words, TAIL);
    if (head === tail) return pageCount <= STORE_QUEUE_PAGES ? 0 : -1;
    if (head - tail >= STORE_QUEUE_ENTRIES) return -1;
    const oldest = this.#words[entryAt(tail) + DATA_PAGE] ?? 0;
    const next = this.#nextPage;
    // strictly below `oldest`, so that a full ring never looks like an empty one
    if (next < oldest || (next === oldest && head !== tail)) return next + pageCount < oldest ? next : -1;
    if (next + pageCount <= STORE_QUEUE_PAGES) return next;
    return pageCount < oldest ? 0 : -1;
  }

  /** Where the data of a queued page lies, or -1 when the store worker is done with it. */
  find(region: number, page: number): number {
    const head = Atomics.load(this.#words, HEAD);
    for (let index = Atomics.load(this.#words, TAIL); index !== head; index = (index + 1) | 0) {
      const entry = entryAt(index);
      const first = (this.#words[entry + FIRST] ?? 0) >>> 0;
      if (
        this.#words[entry + REGION] !== region ||
        page < first ||
        page >= first + (this.#words[entry + COUNT] ?? 0)
      )
        continue;
      return ((this.#words[entry + DATA_PAGE] ?? 0) + page - first) * PAGE_BYTES;
    }
    return -1;
  }

  /**
   * Any thread: copies a queued page to `target`. False when the store worker is done with it: then the copy may be
   * torn (its room may be in use again) and must not be used. Looking at the tail after the copy is what tells.
   */
  copyPage(region: number, page: number, target: Buffer): boolean {
    const head = Atomics.load(this.#words, HEAD);
    for (let index = Atomics.load(this.#words, TAIL); index !== head; index = (index + 1) | 0) {
      const entry = entryAt(index);
      const first = Atomics.load(this.#words, entry + FIRST) >>> 0;
      const count = Atomics.load(this.#words, entry + COUNT);
      if (this.#words[entry + REGION] !== region || page < first || page >= first + count) continue;
      const at = (Atomics.load(this.#words, entry + DATA_PAGE) + page - first) * PAGE_BYTES;
      this.data.copy(target, 0, at, at + PAGE_BYTES);
      return ((index - Atomics.load(this.#words, TAIL)) | 0) >= 0;
    }
    return false;
  }

  close(): void {
    Atomics.store(this.#words, CLOSED, 1);
    Atomics.notify(this.#words, HEAD);
  }

  // store worker

  /** Waits for the oldest entry and fills `entry` with it. Returns false when the queue is closed. */
  take(entry: StoreEntry): boolean {
    const tail = Atomics.load(this.#words, TAIL);
    for (;;) {
      if (Atomics.load(this.#words, CLOSED) !== 0) return false;
      if (Atomics.load(this.#words, HEAD) !== tail) break;
      Atomics.wait(this.#words, HEAD, tail);
    }
    const at = entryAt(tail);
    entry.region = this.#words[at + REGION] ?? 0;
    entry.firstPage = (this.#words[at + FIRST] ?? 0) >>> 0;
    entry.pageCount = this.#words[at + COUNT] ?? 0;
    entry.offset = (this.#words[at + DATA_PAGE] ?? 0) * PAGE_BYTES;
    return true;
  }

  /** Gives the oldest entry's room back. */
  release(): void {
    Atomics.add(this.#words, TAIL, 1);
  }
}

export interface StoreEntry {
  region: number;
  firstPage: number;
  pageCount: number;
  /** Of the first page, in `data`. */
  offset: number;
}

function entryAt(index: number): number {
  return CONTROL_WORDS + ((index >>> 0) % STORE_QUEUE_ENTRIES) * ENTRY_WORDS;
}
