// What the memtap's threads share. Three threads, one SharedArrayBuffer each way:
//
//   read worker   reads /dev/fuse; answers what it can; posts the rest as slots; may send a demand on the lane itself
//   main thread   owns the network and every READ that was posted; answers them
//   store worker  pushes pages into the kernel's page cache (FUSE_NOTIFY_STORE), and answers nothing
//
// Page states, one byte a page, changed only by compare-and-exchange except where one thread owns the page:
//
//   remote --claimed--> wanted --arrived, nobody waits--> queued --store worker--> storing --> cached
//     ^                  |  \--arrived, answered-----------------------------------------------^  |
//     |                  |   \--arrived, all zero--> zero (final)                                 |
//     '--link lost-------'          cached (the kernel may drop it again) --claimed--> wanted <---'
//
// Invariants:
//   wanted  exactly one request for the page is under way, or its claimer is about to send it or give it back
//   queued, storing  the page's data is in the store queue
//   from queued on (by number) the page has come and is not zero
//   A READ for a page in any of these three goes to the main thread, which alone decides how it is answered.

// the global `performance` is a getter, and costs more than the clock that it leads to
import { performance } from 'node:perf_hooks';
import {
  PAGE_FLAG_COMPRESSIBLE,
  PAGE_FLAG_MULTICAST,
  PageRegion,
  REHEARSAL_PAGES,
} from '@snowflock/protocol/pages';

export const PageState = { remote: 0, zero: 1, wanted: 2, queued: 3, storing: 4, cached: 5 } as const;
export type PageState = (typeof PageState)[keyof typeof PageState];

/** READs that can be held at once. Beyond it the read worker stops reading; a host runs far fewer vCPUs and I/O threads. */
export const SLOT_COUNT = 4096;
/** A slot is posted at most twice: when it is filled, and when sending it failed. */
export const RING_ENTRIES = 2 * SLOT_COUNT;
/** Set in a ring entry: the demand of this slot could not be sent. */
export const RING_UNSENT = 0x10000;

/** 32-bit words of a slot. The time is a float64 at words 12 and 13. */
export const Slot = {
  words: 16,
  used: 0,
  uniqueLow: 1,
  uniqueHigh: 2,
  region: 3,
  offsetLow: 4,
  offsetHigh: 5,
  sizeBytes: 6,
  pid: 7,
  kind: 8,
  extraFirst: 9,
  extraCount: 10,
  generation: 11,
  timeWord: 12,
} as const;

export const SlotKind = {
  /** A demand that the read worker has claimed and sends itself. */
  sent: 1,
  /** A READ that the main thread has to resolve. */
  posted: 2,
  /** An INTERRUPT; `unique` is the READ's. */
  interrupt: 3,
  /** A READ that the main thread has to resolve, and that nobody waits for. */
  ahead: 4,
} as const;

/** Words of the control block. */
export const Control = {
  ringHead: 0,
  ringTail: 1,
  wakePending: 2,
  frozen: 3,
  failed: 4,
  laneLock: 5,
  laneFd: 6,
  openFiles: 7,
  minWindow: 8,
  maxWindow: 9,
  mounted: 10,
  /** Answers may come by multicast. */
  multicast: 11,
  /** The link is narrow. */
  narrow: 12,
  /** Over a narrow link, what nobody waits for yet may come compressed. */
  compress: 13,
  words: 16,
} as const;

/** Counters that the read worker and store worker own, float64. */
export const Counter = {
  zeroReads: 0,
  zeroPages: 1,
  directReads: 2,
  storedPages: 3,
  storeErrors: 4,
  sentBytes: 5,
  queueReads: 6,
  words: 8,
} as const;

export interface SharedMemory {
  readonly control: SharedArrayBuffer;
  readonly ring: SharedArrayBuffer;
  readonly slots: SharedArrayBuffer;
  readonly counters: SharedArrayBuffer;
  readonly ramStates: SharedArrayBuffer;
  readonly rehearsalStates: SharedArrayBuffer;
  readonly diskStates: SharedArrayBuffer;
}

export function allocateShared(options: {
  readonly ramPages: number;
  readonly diskPages: number;
}): SharedMemory {
  return {
    control: new SharedArrayBuffer(Control.words * 4),
    ring: new SharedArrayBuffer(RING_ENTRIES * 4),
    slots: new SharedArrayBuffer(SLOT_COUNT * Slot.words * 4),
    counters: new SharedArrayBuffer(Counter.words * 8),
    ramStates: new SharedArrayBuffer(options.ramPages),
    rehearsalStates: new SharedArrayBuffer(REHEARSAL_PAGES),
    diskStates: new SharedArrayBuffer(options.diskPages),
  };
}

/** Views of the shared memory, made once per thread. */
export class SharedState {
  readonly control: Int32Array;
  readonly ring: Int32Array;
  readonly slots: Int32Array;
  readonly times: Float64Array;
  readonly counters: Float64Array;
  /** Page states by region. */
  readonly states: readonly [ram: Uint8Array, rehearsal: Uint8Array, disk: Uint8Array];

  constructor(memory: SharedMemory) {
    this.control = new Int32Array(memory.control);
    this.ring = new Int32Array(memory.ring);
    this.slots = new Int32Array(memory.slots);
    this.times = new Float64Array(memory.slots);
    this.counters = new Float64Array(memory.counters);
    this.states = [
      new Uint8Array(memory.ramStates),
      new Uint8Array(memory.rehearsalStates),
      new Uint8Array(memory.diskStates),
    ];
  }

  statesOf(region: number): Uint8Array {
    const states = this.states[region];
    if (states === undefined) throw new Error(`there is no region ${region}`);
    return states;
  }

  count(counter: number, by: number): void {
    this.counters[counter] = (this.counters[counter] ?? 0) + by;
  }

  /** Flag of a READ that says whether its answer may come by multicast. */
  get multicastFlag(): number {
    return Atomics.load(this.control, Control.multicast) === 0 ? 0 : PAGE_FLAG_MULTICAST;
  }

  /** Flags of a READ for pages that nobody waits for yet. */
  get aheadFlags(): number {
    const { control } = this;
    const compressible =
      Atomics.load(control, Control.narrow) !== 0 && Atomics.load(control, Control.compress) !== 0;
    return this.multicastFlag | (compressible ? PAGE_FLAG_COMPRESSIBLE : 0);
  }

  /** Whether the source may be asked for pages of a region: for what counts only once it has its snapshot. */
  mayAsk(region: number): boolean {
    return region === PageRegion.rehearsal || Atomics.load(this.control, Control.frozen) !== 0;
  }

  /** Moves a page to wanted if it has to be fetched and nobody fetches it. Returns whether this call claimed it. */
  claim(states: Uint8Array, page: number): boolean {
    if (this.claimRemote(states, page)) return true;
    return Atomics.compareExchange(states, page, PageState.cached, PageState.wanted) === PageState.cached;
  }

  /** The same for pages that never came: what is cached, the kernel may still have. */
  claimRemote(states: Uint8Array, page: number): boolean {
    return Atomics.compareExchange(states, page, PageState.remote, PageState.wanted) === PageState.remote;
  }

  /** Gives back a claim whose request was never sent or is lost. */
  unclaim(states: Uint8Array, page: number): void {
    Atomics.compareExchange(states, page, PageState.wanted, PageState.remote);
  }

  /** Read worker: hands a slot (or a slot with RING_UNSENT) to the main thread, which sees it when it next looks. */
  post(entry: number): void {
    const head = Atomics.load(this.control, Control.ringHead);
    Atomics.store(this.ring, (head >>> 0) % RING_ENTRIES, entry);
    Atomics.store(this.control, Control.ringHead, (head + 1) | 0);
  }

  /**
   * Enters the lane's critical section: nobody holds it longer than one write to a socket takes. Who waits looks again after a
   * millisecond and is not woken, since almost nobody ever waits, and waking costs even when there is nobody.
   */
  lockLane(): void {
    while (Atomics.compareExchange(this.control, Control.laneLock, 0, 1) !== 0)
      Atomics.wait(this.control, Control.laneLock, 1, 1);
  }

  unlockLane(): void {
    Atomics.store(this.control, Control.laneLock, 0);
  }
}

const TIME_ORIGIN_MS = performance.timeOrigin;

/** Microseconds on a clock that all threads of the process share. */
export function sharedNowUs(): number {
  return (TIME_ORIGIN_MS + performance.now()) * 1000;
}

// Request ids on the demand lane say what they answer without a table: the slot, the part (0 the demand itself, then the
// extra pages in parts of EXTRA_PART_PAGES), and the slot's generation, so that a late answer cannot meet a reused slot.

export const EXTRA_PART_PAGES = 64;
/** 1024 extra pages at most (4 MiB). */
export const EXTRA_PARTS_MAX = 16;

export function demandRequestId(slot: number, part: number, generation: number): number {
  return ((generation << 17) | (part << 12) | slot) >>> 0;
}
export function slotOfRequest(id: number): number {
  return id & (SLOT_COUNT - 1);
}
export function partOfRequest(id: number): number {
  return (id >>> 12) & 31;
}
export function generationOfRequest(id: number): number {
  return id >>> 17;
}
export const GENERATION_MASK = 0x7fff;
