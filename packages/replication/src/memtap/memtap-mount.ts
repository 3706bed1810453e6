// The mount with the threads that serve it.
//
//   open: device, mount, read worker, store worker --> serving --> close: unmount, workers end
//
// Owns /dev/fuse, the mount, both workers, the fetcher. The process can only exit once the read worker has left its
// blocking read, and it leaves it when the mount is gone: so closing always unmounts first, and is bounded in time.

import { join } from 'node:path';
import { Worker } from 'node:worker_threads';
import { PAGE_BYTES, PageRegion, REHEARSAL_PAGES } from '@snowflock/protocol/pages';
import { Fetcher } from './fetcher.ts';
import { mountFuse, openFuseDevice, unmountFuse } from './fuse/mount.ts';
import { FILE_NODE_BASE, type FuseFile } from './fuse/protocol.ts';
import { rehearse, REHEARSAL_FILE } from './rehearsal.ts';
import { collectYoungGarbage } from '../collect-garbage.ts';
import type { ReadWorkerData } from './read-worker.ts';
import { allocateShared, Control, Counter, PageState, SharedState } from './shared-state.ts';
import { PresenceMap } from '../presence-map.ts';
import type { StoreWorkerData } from './store-worker.ts';
import { allocateStoreQueue, StoreQueue } from './store-queue.ts';

/** Read-ahead of the memtap itself, in pages beyond the demanded one: alone, and at most in a sequential stream (1 MiB). */
const MIN_WINDOW_PAGES = 3;
const MAX_WINDOW_PAGES = 256;
const REHEARSAL_BYTES = REHEARSAL_PAGES * PAGE_BYTES;
const UNMOUNT_TIMEOUT_MS = 2000;
/** A read worker that has not left by then never will; the process is ended the hard way. */
const WORKER_EXIT_TIMEOUT_MS = 2000;

export interface MemtapMountOptions {
  readonly mount: string;
  readonly ramBytes: number;
  readonly diskBytes: number;
  readonly sourceTimeoutMs: number;
  /** Over a narrow link, what nobody waits for yet may come compressed. */
  readonly compress: boolean;
  readonly onSourceLost: (reason: string) => void;
}

export class MemtapMount {
  readonly #options: MemtapMountOptions;
  readonly #state: SharedState;
  readonly #queue: StoreQueue;
  readonly #readWorker: Worker;
  readonly #storeWorker: Worker;
  readonly fetcher: Fetcher;
  /** Settles when nobody serves the mount any more: it was taken away, by `close` or by somebody else. */
  readonly unmounted: Promise<void>;
  #rehearsing = false;
  readonly #rehearsed = Promise.withResolvers<void>();
  /** The workers' counters when the rehearsal was over. */
  #before = new Float64Array(Counter.words);

  private constructor(options: MemtapMountOptions, fuseFd: number) {
    this.#options = options;
    const { ramBytes, diskBytes } = options;
    const file = (name: string, region: PageRegion, sizeBytes: number): FuseFile => ({
      name,
      node: FILE_NODE_BASE + region,
      sizeBytes,
    });
    const files = [
      file('ram', PageRegion.ram, ramBytes),
      file(REHEARSAL_FILE, PageRegion.rehearsal, REHEARSAL_BYTES),
    ];
    if (diskBytes > 0) files.push(file('disk', PageRegion.disk, diskBytes));
    const shared = allocateShared({
      ramPages: ramBytes / PAGE_BYTES,
      diskPages: Math.ceil(diskBytes / PAGE_BYTES),
    });
    const queueMemory = allocateStoreQueue();
    this.#state = new SharedState(shared);
    this.#queue = new StoreQueue(queueMemory);
    this.setWindow({ min: MIN_WINDOW_PAGES, max: MAX_WINDOW_PAGES });
    Atomics.store(this.#state.control, Control.compress, options.compress ? 1 : 0);
    this.fetcher = new Fetcher({
      fuseFd,
      state: this.#state,
      queue: this.#queue,
      sourceTimeoutMs: options.sourceTimeoutMs,
      onSourceLost: options.onSourceLost,
      onConnected: () => void this.#rehearse(),
      onFrozen: () => {
        this.#before = this.#state.counters.slice();
        // it came before the rehearsal, which then never begins
        if (!this.#rehearsing) this.#rehearsed.resolve();
      },
    });
    const readerData: ReadWorkerData = { fuseFd, files, shared, queue: queueMemory };
    const storeData: StoreWorkerData = {
      fuseFd,
      shared,
      queue: queueMemory,
      fileSizes: [ramBytes, REHEARSAL_BYTES, diskBytes],
    };
    this.#readWorker = new Worker(new URL('./read-worker.ts', import.meta.url), { workerData: readerData });
    this.#storeWorker = new Worker(new URL('./store-worker.ts', import.meta.url), { workerData: storeData });
    this.#readWorker.on('message', () => this.fetcher.drain());
    this.unmounted = new Promise((resolve) => this.#readWorker.once('exit', () => resolve()));
    // a thread that fails has broken an invariant; readers must not wait for the rest of it
    for (const worker of [this.#readWorker, this.#storeWorker])
      worker.on('error', (error) => console.error('memtap: a worker failed:', error));
  }

  static async open(options: MemtapMountOptions): Promise<MemtapMount> {
    const fuseFd = openFuseDevice();
    // the workers load while mount(8) runs
    const mount = new MemtapMount(options, fuseFd);
    await mountFuse({ fuseFd, directory: options.mount });
    Atomics.store(mount.#state.control, Control.mounted, 1);
    Atomics.notify(mount.#state.control, Control.mounted);
    return mount;
  }

  get ramBytes(): number {
    return this.#options.ramBytes;
  }

  get openFiles(): number {
    return Atomics.load(this.#state.control, Control.openFiles);
  }

  setWindow(window: { readonly min?: number | undefined; readonly max?: number | undefined }): void {
    if (window.min !== undefined) Atomics.store(this.#state.control, Control.minWindow, window.min);
    if (window.max !== undefined) Atomics.store(this.#state.control, Control.maxWindow, window.max);
  }

  /** The pages of a region that have come and are not zero; read off their states, so that nothing is kept for it. */
  arrived(region: PageRegion): PresenceMap {
    const states = this.#state.statesOf(region);
    const map = new PresenceMap(states.length);
    for (const [page, state] of states.entries()) if (state >= PageState.queued) map.set(page);
    return map;
  }

  stats(): object {
    const counter = (index: number): number =>
      (this.#state.counters[index] ?? 0) - (this.#before[index] ?? 0);
    const fetched = this.fetcher.stats();
    return {
      ...fetched,
      wireBytesSent: fetched.wireBytesSent + counter(Counter.sentBytes),
      sharedReads: fetched.sharedReads + counter(Counter.queueReads),
      zeroReads: counter(Counter.zeroReads),
      zeroPages: counter(Counter.zeroPages),
      openFiles: this.openFiles,
      attached: this.fetcher.attached,
      sourceLost: this.fetcher.lostReason ?? null,
    };
  }

  /** Resolves when the rehearsal is over, or there is to be none. Needs a source that can be reached. */
  get rehearsed(): Promise<void> {
    return this.#rehearsed.promise;
  }

  async #rehearse(): Promise<void> {
    if (this.#rehearsing) return;
    this.#rehearsing = true;
    try {
      await rehearse({
        path: join(this.#options.mount, REHEARSAL_FILE),
        prefetch: (pages) => this.fetcher.prefetch(PageRegion.rehearsal, pages),
      });
    } catch (error) {
      console.error('memtap: the rehearsal failed:', error);
    }
    collectYoungGarbage();
    this.#rehearsed.resolve();
  }

  async close(): Promise<void> {
    this.fetcher.close();
    await unmountFuse(this.#options.mount, { timeoutMs: UNMOUNT_TIMEOUT_MS });
    this.#queue.close();
    const stuck = setTimeout(() => {
      console.error('memtap: the read worker is stuck; ending the process');
      process.kill(process.pid, 'SIGKILL');
    }, WORKER_EXIT_TIMEOUT_MS);
    await this.unmounted;
    clearTimeout(stuck);
  }
}
