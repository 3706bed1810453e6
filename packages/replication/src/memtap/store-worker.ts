// The store worker: pushes prefetched pages into the kernel's page cache with FUSE_NOTIFY_STORE.
//
// A STORE blocks, unkillably, on a page that an unanswered READ holds locked. That is harmless here because READs are
// answered by other threads that never wait for this one; and it is rare, because a page that a READ was seen for is no
// longer `queued` and is skipped.

import { writevSync } from 'node:fs';
import { workerData } from 'node:worker_threads';
import { PAGE_BYTES } from '@snowflock/protocol/pages';
import { FILE_NODE_BASE, NOTIFY_STORE, STORE_HEADER } from './fuse/protocol.ts';
import { Counter, PageState, SharedState, type SharedMemory } from './shared-state.ts';
import { type StoreEntry, StoreQueue, type StoreQueueMemory } from './store-queue.ts';

export interface StoreWorkerData {
  readonly fuseFd: number;
  readonly shared: SharedMemory;
  readonly queue: StoreQueueMemory;
  /** By region. */
  readonly fileSizes: readonly number[];
}

/** Pages per STORE: large enough to be worth the call, small enough that a reader running into it waits little. */
const CHUNK_PAGES = 16;

class StoreWorker {
  readonly #fd: number;
  readonly #state: SharedState;
  readonly #queue: StoreQueue;
  readonly #fileSizes: readonly number[];
  readonly #header = Buffer.alloc(STORE_HEADER);
  readonly #iov: Buffer[] = [this.#header, this.#header];

  constructor(data: StoreWorkerData) {
    this.#fd = data.fuseFd;
    this.#state = new SharedState(data.shared);
    this.#queue = new StoreQueue(data.queue);
    this.#fileSizes = data.fileSizes;
  }

  run(): void {
    const entry: StoreEntry = { region: 0, firstPage: 0, pageCount: 0, offset: 0 };
    let mounted = true;
    while (this.#queue.take(entry)) {
      if (mounted) mounted = this.#storeEntry(entry);
      // whatever was not stored goes back: no page may stay queued once its entry is gone
      if (!mounted) this.#giveBack(entry);
      this.#queue.release();
    }
  }

  /**
   * Stores an entry chunk by chunk, the last one first. A sequential reader is just behind the entry's first page: going
   * its way, each STORE would find the next page locked by its next READ, page after page. Coming towards it, they meet once.
   * Returns false when the mount is gone.
   */
  #storeEntry(entry: StoreEntry): boolean {
    const chunks = Math.ceil(entry.pageCount / CHUNK_PAGES);
    for (let chunk = chunks - 1; chunk >= 0; chunk--) {
      const first = entry.firstPage + chunk * CHUNK_PAGES;
      const end = Math.min(first + CHUNK_PAGES, entry.firstPage + entry.pageCount);
      if (!this.#storeRuns(entry, first, end)) return false;
    }
    return true;
  }

  #giveBack(entry: StoreEntry): void {
    const states = this.#state.statesOf(entry.region);
    for (let page = entry.firstPage; page < entry.firstPage + entry.pageCount; page++)
      Atomics.compareExchange(states, page, PageState.queued, PageState.remote);
  }

  /** Stores the runs of pages from `page` to `end` that nobody asked for meanwhile. */
  #storeRuns(entry: StoreEntry, from: number, end: number): boolean {
    const states = this.#state.statesOf(entry.region);
    let page = from;
    while (page < end) {
      const first = page;
      while (
        page < end &&
        Atomics.compareExchange(states, page, PageState.queued, PageState.storing) === PageState.queued
      )
        page++;
      const count = page - first;
      if (count === 0) {
        page++;
        continue;
      }
      const offset = entry.offset + (first - entry.firstPage) * PAGE_BYTES;
      const outcome = this.#store(
        entry.region,
        first,
        this.#queue.data.subarray(offset, offset + count * PAGE_BYTES),
      );
      const after = outcome === 'stored' ? PageState.cached : PageState.remote;
      for (let done = first; done < page; done++)
        Atomics.compareExchange(states, done, PageState.storing, after);
      if (outcome === 'stored') this.#state.count(Counter.storedPages, count);
      if (outcome === 'unmounted') return false;
    }
    return true;
  }

  #store(region: number, firstPage: number, pages: Buffer): 'stored' | 'refused' | 'unmounted' {
    const header = this.#header;
    // a STORE behind the end of the file would make the file longer
    const data = pages.subarray(0, (this.#fileSizes[region] ?? 0) - firstPage * PAGE_BYTES);
    header.writeUInt32LE(STORE_HEADER + data.length, 0);
    header.writeInt32LE(NOTIFY_STORE, 4);
    header.writeUInt32LE(region + FILE_NODE_BASE, 16);
    const position = firstPage * PAGE_BYTES;
    header.writeUInt32LE(position % 2 ** 32, 24);
    header.writeUInt32LE(Math.floor(position / 2 ** 32), 28);
    header.writeUInt32LE(data.length, 32);
    this.#iov[1] = data;
    try {
      writevSync(this.#fd, this.#iov);
      return 'stored';
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      if (code === 'ENODEV' || code === 'ECONNABORTED' || code === 'ENOTCONN') return 'unmounted';
      // ENOENT: the kernel forgot the inode; ENOMEM: it has no room. The pages stay at the source.
      this.#state.count(Counter.storeErrors, 1);
      if (code === undefined) throw error;
      return 'refused';
    }
  }
}

new StoreWorker(workerData as StoreWorkerData).run();
