// The read worker: the thread that reads /dev/fuse. It answers metadata, holes and zero pages itself, sends the demand for
// a missing page on the demand lane itself (so that a miss costs one thread switch less), and posts to the main thread
// every READ that something is special about: a page already on its way, no lane, not attached yet.
//
// It never issues FUSE_NOTIFY_STORE and never waits for one, so an answer never depends on a STORE.

import { readSync, writeSync } from 'node:fs';
import { parentPort, workerData } from 'node:worker_threads';
import { PAGE_BYTES, PAGE_WIRE_MAX_PAGES } from '@snowflock/protocol/pages';
import { AHEAD_READ_FLAG } from '../ahead-reads.ts';
import { DemandSender } from './demand-sender.ts';
import {
  answerMetadata,
  Errno,
  FILE_NODE_BASE,
  FUSE_MAX_READ_BYTES,
  FUSE_OUT_HEADER,
  FUSE_REQUEST_BYTES,
  type FuseFile,
  FuseOp,
  writeOutHeader,
} from './fuse/protocol.ts';
import {
  Control,
  Counter,
  GENERATION_MASK,
  PageState,
  sharedNowUs,
  SharedState,
  type SharedMemory,
  Slot,
  SLOT_COUNT,
  SlotKind,
} from './shared-state.ts';
import { StoreQueue, type StoreQueueMemory } from './store-queue.ts';

export interface ReadWorkerData {
  readonly fuseFd: number;
  readonly files: readonly FuseFile[];
  readonly shared: SharedMemory;
  readonly queue: StoreQueueMemory;
}

/** How long to sleep between looks for a free slot; only reached when thousands of READs are held. */
const SLOT_WAIT_MS = 2;
/** Slept on; it never changes. */
const SLEEP = new Int32Array(new SharedArrayBuffer(4));

class ReadWorker {
  readonly #fd: number;
  readonly #files: readonly FuseFile[];
  /** The same by region. */
  readonly #regions: (FuseFile | undefined)[] = [];
  readonly #state: SharedState;
  readonly #request = Buffer.alloc(FUSE_REQUEST_BYTES);
  // Answers, each with its header in front, so that one write sends it.
  readonly #out = Buffer.alloc(FUSE_OUT_HEADER + 128);
  readonly #zeros = Buffer.alloc(FUSE_OUT_HEADER + FUSE_MAX_READ_BYTES);
  readonly #pageReply = Buffer.alloc(FUSE_OUT_HEADER + PAGE_BYTES);
  readonly #page = this.#pageReply.subarray(FUSE_OUT_HEADER);
  readonly #queue: StoreQueue;
  readonly #demand: DemandSender;
  #slotCursor = 0;

  constructor(data: ReadWorkerData) {
    this.#fd = data.fuseFd;
    this.#files = data.files;
    for (const file of data.files) this.#regions[file.node - FILE_NODE_BASE] = file;
    this.#state = new SharedState(data.shared);
    this.#queue = new StoreQueue(data.queue);
    this.#demand = new DemandSender({ state: this.#state, wake: () => this.#wake() });
  }

  /** Returns when the file system is unmounted or its connection aborted. */
  run(): void {
    // started before the mount is made: reading /dev/fuse is an error until then
    Atomics.wait(this.#state.control, Control.mounted, 0);
    for (;;) {
      const length = this.#next();
      if (length === 0) return;
      const op = this.#request.readUInt32LE(4);
      if (op === FuseOp.read) this.#read();
      else if (op === FuseOp.interrupt) this.#interrupt();
      else if (op !== FuseOp.forget && op !== FuseOp.batchForget) this.#metadata(op);
    }
  }

  #next(): number {
    for (;;) {
      try {
        return readSync(this.#fd, this.#request, 0, FUSE_REQUEST_BYTES, null);
      } catch (error) {
        const { code } = error as NodeJS.ErrnoException;
        // ENOENT: the request was interrupted before we read it. ENODEV, ECONNABORTED: unmounted, aborted.
        if (code === 'ENODEV' || code === 'ECONNABORTED') return 0;
        if (code !== 'ENOENT' && code !== 'EINTR' && code !== 'EAGAIN') throw error;
      }
    }
  }

  #metadata(op: number): void {
    if (op === FuseOp.open) Atomics.add(this.#state.control, Control.openFiles, 1);
    if (op === FuseOp.release) Atomics.sub(this.#state.control, Control.openFiles, 1);
    const length = answerMetadata(this.#request, this.#out, this.#files);
    this.#write(this.#out, length);
  }

  #read(): void {
    const request = this.#request;
    const file = this.#regions[request.readUInt32LE(16) - FILE_NODE_BASE];
    const offset = request.readUInt32LE(48) + request.readUInt32LE(52) * 2 ** 32;
    const asked = request.readUInt32LE(56);
    if (file === undefined || asked > FUSE_MAX_READ_BYTES) return this.#fail(Errno.EIO);
    const size = Math.max(0, Math.min(asked, file.sizeBytes - offset));
    if (size === 0) return this.#replyZero(0);
    const region = file.node - FILE_NODE_BASE;
    const states = this.#state.statesOf(region);
    const first = Math.floor(offset / PAGE_BYTES);
    const end = Math.ceil((offset + size) / PAGE_BYTES);
    let zero = 0;
    for (let page = first; page < end; page++) if (Atomics.load(states, page) === PageState.zero) zero++;
    if (zero === end - first) {
      this.#state.count(Counter.zeroReads, 1);
      this.#state.count(Counter.zeroPages, zero);
      return this.#replyZero(size);
    }
    if (size === PAGE_BYTES && end - first === 1 && this.#replyQueued(region, states, first)) return;
    if (Atomics.load(this.#state.control, Control.failed) !== 0) return this.#fail(Errno.EIO);
    const slot = this.#takeSlot();
    const words = this.#state.slots;
    const at = slot * Slot.words;
    words[at + Slot.uniqueLow] = request.readInt32LE(8);
    words[at + Slot.uniqueHigh] = request.readInt32LE(12);
    words[at + Slot.region] = region;
    words[at + Slot.offsetLow] = request.readInt32LE(48);
    words[at + Slot.offsetHigh] = request.readInt32LE(52);
    words[at + Slot.sizeBytes] = size;
    words[at + Slot.pid] = request.readInt32LE(32);
    words[at + Slot.extraCount] = 0;
    this.#state.times[(at + Slot.timeWord) >>> 1] = sharedNowUs();
    const ahead = (request.readUInt32LE(72) & AHEAD_READ_FLAG) !== 0;
    const aligned = offset % PAGE_BYTES === 0 && end - first <= PAGE_WIRE_MAX_PAGES;
    // what nobody waits for takes the bulk lane, and brings nothing along
    if (aligned && !ahead && this.#demand.send(slot, region, first, end - first)) return;
    words[at + Slot.kind] = ahead ? SlotKind.ahead : SlotKind.posted;
    this.#state.post(slot);
    this.#wake();
  }

  /** Answers from the store queue when the page is on its way through it: the READ would only stand in the STORE's way. */
  #replyQueued(region: number, states: Uint8Array, page: number): boolean {
    const state = Atomics.load(states, page);
    if (state !== PageState.queued && state !== PageState.storing) return false;
    if (!this.#queue.copyPage(region, page, this.#page)) return false;
    // the store worker need not begin with it any more; if it has, it waits for this answer only
    Atomics.compareExchange(states, page, PageState.queued, PageState.cached);
    this.#reply(this.#pageReply, { bodyBytes: PAGE_BYTES, error: 0 });
    this.#state.count(Counter.queueReads, 1);
    return true;
  }

  #interrupt(): void {
    const slot = this.#takeSlot();
    const at = slot * Slot.words;
    this.#state.slots[at + Slot.uniqueLow] = this.#request.readInt32LE(40);
    this.#state.slots[at + Slot.uniqueHigh] = this.#request.readInt32LE(44);
    this.#state.slots[at + Slot.kind] = SlotKind.interrupt;
    this.#state.post(slot);
    this.#wake();
  }

  #takeSlot(): number {
    const { slots } = this.#state;
    for (;;) {
      for (let tries = 0; tries < SLOT_COUNT; tries++) {
        const slot = this.#slotCursor;
        this.#slotCursor = (this.#slotCursor + 1) % SLOT_COUNT;
        const at = slot * Slot.words;
        if (Atomics.load(slots, at + Slot.used) !== 0) continue;
        slots[at + Slot.generation] = ((slots[at + Slot.generation] ?? 0) + 1) & GENERATION_MASK;
        Atomics.store(slots, at + Slot.used, 1);
        return slot;
      }
      Atomics.wait(SLEEP, 0, 0, SLOT_WAIT_MS);
    }
  }

  #wake(): void {
    if (Atomics.exchange(this.#state.control, Control.wakePending, 1) === 0) parentPort?.postMessage(0);
  }

  #replyZero(size: number): void {
    this.#reply(this.#zeros, { bodyBytes: size, error: 0 });
  }

  #fail(errno: number): void {
    this.#reply(this.#out, { bodyBytes: 0, error: -errno });
  }

  /** Answers the request that was read last. */
  #reply(reply: Buffer, { bodyBytes, error }: { bodyBytes: number; error: number }): void {
    const length = FUSE_OUT_HEADER + bodyBytes;
    writeOutHeader(reply, length, error);
    this.#request.copy(reply, 8, 8, 16);
    this.#write(reply, length);
  }

  #write(reply: Buffer, length: number): void {
    try {
      writeSync(this.#fd, reply, 0, length);
    } catch (error) {
      // ENOENT: the asker is gone. ENODEV, ECONNABORTED: the mount is; the next read of /dev/fuse says so again.
      const { code } = error as NodeJS.ErrnoException;
      if (code !== 'ENOENT' && code !== 'ENODEV' && code !== 'ECONNABORTED') throw error;
    }
  }
}

new ReadWorker(workerData as ReadWorkerData).run();
