// The read worker: the thread that reads /dev/fuse. It answers metadata, holes and zero pages itself, sends the demand for
// a missing page on the demand lane itself (so that a miss costs one thread switch less), and posts to the main thread
// every READ that something is special about: a page already on its way, no lane, not attached yet.
//
// It never issues FUSE_NOTIFY_STORE and never waits for one, so an answer never depends on a STORE.

import { readSync, writeSync, writevSync } from 'node:fs';
import { parentPort, workerData } from 'node:worker_threads';
import {
  createPageFrame,
  PAGE_BYTES,
  PAGE_FLAG_URGENT,
  PAGE_FRAME_HEADER_BYTES,
  PAGE_WIRE_MAX_PAGES,
  PageFrameType,
  writePageFrame,
} from '@snowflock/protocol';
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
import { ReadAhead } from './read-ahead.ts';
import {
  Control,
  Counter,
  demandRequestId,
  EXTRA_PART_PAGES,
  EXTRA_PARTS_MAX,
  GENERATION_MASK,
  PageState,
  RING_ENTRIES,
  RING_UNSENT,
  sharedNowUs,
  SharedState,
  type SharedMemory,
  Slot,
  SLOT_COUNT,
  SlotKind,
} from './shared-state.ts';

export interface ReadWorkerData {
  readonly fuseFd: number;
  readonly files: readonly FuseFile[];
  readonly shared: SharedMemory;
}

/** How long to sleep between looks for a free slot; only reached when thousands of READs are held. */
const SLOT_WAIT_MS = 2;

class ReadWorker {
  readonly #fd: number;
  readonly #files: readonly FuseFile[];
  readonly #state: SharedState;
  readonly #request = Buffer.alloc(FUSE_REQUEST_BYTES);
  readonly #out = Buffer.alloc(FUSE_OUT_HEADER + 128);
  readonly #zeros = Buffer.alloc(FUSE_MAX_READ_BYTES);
  readonly #frames = Buffer.alloc(PAGE_FRAME_HEADER_BYTES * (1 + EXTRA_PARTS_MAX));
  readonly #frame = createPageFrame();
  readonly #readAhead = new ReadAhead();
  readonly #limits = { min: 0, max: 0 };
  readonly #zeroReply: Buffer[] = [this.#out.subarray(0, FUSE_OUT_HEADER), this.#zeros];
  #slotCursor = 0;
  #extraFirst = 0;
  #extraCount = 0;

  constructor(data: ReadWorkerData) {
    this.#fd = data.fuseFd;
    this.#files = data.files;
    this.#state = new SharedState(data.shared);
  }

  /** Returns when the file system is unmounted or its connection aborted. */
  run(): void {
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
    this.#send(() => writeSync(this.#fd, this.#out, 0, length));
  }

  #read(): void {
    const request = this.#request;
    const file = this.#files[request.readUInt32LE(16) - FILE_NODE_BASE];
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
    const aligned = offset % PAGE_BYTES === 0 && end - first <= PAGE_WIRE_MAX_PAGES;
    if (aligned && this.#sendDemand(slot, region, first, end - first)) return;
    words[at + Slot.kind] = SlotKind.posted;
    this.#post(slot);
    this.#wake();
  }

  /** Claims the pages and sends the demand on the lane. Returns false when the main thread has to take the READ. */
  #sendDemand(slot: number, region: number, first: number, count: number): boolean {
    const { control, slots } = this.#state;
    if (Atomics.load(control, Control.laneFd) < 0) return false;
    this.#state.lockLane();
    try {
      const fd = Atomics.load(control, Control.laneFd);
      if (fd < 0 || !this.#claimAll(region, first, count)) return false;
      this.#planExtra(region, first, count);
      const at = slot * Slot.words;
      slots[at + Slot.kind] = SlotKind.sent;
      slots[at + Slot.extraFirst] = this.#extraFirst;
      slots[at + Slot.extraCount] = this.#extraCount;
      const length = this.#encodeDemand(slot, region, first, count);
      // posted before it is sent: the answer must never find the main thread without the slot
      this.#post(slot);
      if (!this.#writeLane(fd, length)) {
        this.#post(slot | RING_UNSENT);
        this.#wake();
      }
      return true;
    } finally {
      this.#state.unlockLane();
    }
  }

  #claimAll(region: number, first: number, count: number): boolean {
    const states = this.#state.statesOf(region);
    for (let page = first; page < first + count; page++) {
      if (this.#state.claim(states, page) || Atomics.load(states, page) === PageState.zero) continue;
      for (let back = first; back < page; back++) this.#state.unclaim(states, back);
      return false;
    }
    return true;
  }

  /** Decides on extra pages and claims them: the first run of pages in the window that nobody has or fetches. */
  #planExtra(region: number, first: number, count: number): void {
    const { control } = this.#state;
    const states = this.#state.statesOf(region);
    this.#limits.min = Atomics.load(control, Control.minWindow);
    this.#limits.max = Atomics.load(control, Control.maxWindow);
    const window = this.#readAhead.onMiss(region, first, count, this.#limits);
    const end = Math.min(first + count + window, states.length);
    let page = first + count;
    while (page < end && Atomics.load(states, page) !== PageState.remote) page++;
    this.#extraFirst = page;
    let last = page;
    for (; page < end; page++) {
      const state = Atomics.load(states, page);
      if (state === PageState.zero) continue;
      if (state !== PageState.remote || !this.#state.claim(states, page)) break;
      last = page + 1;
    }
    this.#extraCount = last - this.#extraFirst;
  }

  #encodeDemand(slot: number, region: number, first: number, count: number): number {
    const frame = this.#frame;
    const generation = this.#state.slots[slot * Slot.words + Slot.generation] ?? 0;
    frame.type = PageFrameType.read;
    frame.region = region;
    frame.flags = PAGE_FLAG_URGENT;
    frame.pageCount = count;
    frame.firstPage = first;
    frame.requestId = demandRequestId(slot, 0, generation);
    let length = writePageFrame(this.#frames, 0, frame);
    frame.flags = 0;
    for (let done = 0; done < this.#extraCount; done += EXTRA_PART_PAGES) {
      frame.firstPage = this.#extraFirst + done;
      frame.pageCount = Math.min(EXTRA_PART_PAGES, this.#extraCount - done);
      frame.requestId = demandRequestId(slot, 1 + done / EXTRA_PART_PAGES, generation);
      length = writePageFrame(this.#frames, length, frame);
    }
    return length;
  }

  /** One write of a few dozen bytes to a socket that only this thread writes to. A refusal breaks the lane. */
  #writeLane(fd: number, length: number): boolean {
    try {
      const written = writeSync(fd, this.#frames, 0, length);
      if (written === length) {
        this.#state.count(Counter.directReads, 1);
        this.#state.count(Counter.sentBytes, length);
        return true;
      }
    } catch (error) {
      // EAGAIN: the peer takes nothing any more; EPIPE, ECONNRESET: it is gone. Either way the main thread mends the link.
      if ((error as NodeJS.ErrnoException).code === undefined) throw error;
    }
    Atomics.store(this.#state.control, Control.laneFd, -1);
    return false;
  }

  #interrupt(): void {
    const slot = this.#takeSlot();
    const at = slot * Slot.words;
    this.#state.slots[at + Slot.uniqueLow] = this.#request.readInt32LE(40);
    this.#state.slots[at + Slot.uniqueHigh] = this.#request.readInt32LE(44);
    this.#state.slots[at + Slot.kind] = SlotKind.interrupt;
    this.#post(slot);
    this.#wake();
  }

  #takeSlot(): number {
    const { slots, control } = this.#state;
    for (;;) {
      const seen = Atomics.load(control, Control.slotFreed);
      for (let tries = 0; tries < SLOT_COUNT; tries++) {
        const slot = this.#slotCursor;
        this.#slotCursor = (this.#slotCursor + 1) % SLOT_COUNT;
        const at = slot * Slot.words;
        if (Atomics.load(slots, at + Slot.used) !== 0) continue;
        slots[at + Slot.generation] = ((slots[at + Slot.generation] ?? 0) + 1) & GENERATION_MASK;
        Atomics.store(slots, at + Slot.used, 1);
        return slot;
      }
      Atomics.wait(control, Control.slotFreed, seen, SLOT_WAIT_MS);
    }
  }

  #post(entry: number): void {
    const { control, ring } = this.#state;
    const head = Atomics.load(control, Control.ringHead);
    Atomics.store(ring, (head >>> 0) % RING_ENTRIES, entry);
    Atomics.store(control, Control.ringHead, (head + 1) | 0);
  }

  #wake(): void {
    if (Atomics.exchange(this.#state.control, Control.wakePending, 1) === 0) parentPort?.postMessage(0);
  }

  #replyZero(size: number): void {
    this.#header(FUSE_OUT_HEADER + size, 0);
    this.#zeroReply[1] = size === PAGE_BYTES ? this.#zeroPage : this.#zeros.subarray(0, size);
    this.#send(() => writevSync(this.#fd, this.#zeroReply));
  }

  readonly #zeroPage = this.#zeros.subarray(0, PAGE_BYTES);

  #fail(errno: number): void {
    this.#header(FUSE_OUT_HEADER, -errno);
    this.#send(() => writeSync(this.#fd, this.#out, 0, FUSE_OUT_HEADER));
  }

  #header(length: number, error: number): void {
    writeOutHeader(this.#out, length, error);
    this.#request.copy(this.#out, 8, 8, 16);
  }

  #send(write: () => number): void {
    try {
      write();
    } catch (error) {
      // ENOENT: the asker is gone. ENODEV, ECONNABORTED: the mount is; the next read of /dev/fuse says so again.
      const { code } = error as NodeJS.ErrnoException;
      if (code !== 'ENOENT' && code !== 'ENODEV' && code !== 'ECONNABORTED') throw error;
    }
  }
}

new ReadWorker(workerData as ReadWorkerData).run();
