// Sends the demand for missing pages on the demand lane, from the read worker's own thread.
//
// The lane's socket belongs to the main thread; this thread only writes whole requests to its descriptor, inside the lane
// lock, which the main thread takes before it closes the descriptor. Nobody else writes to that socket after its
// handshake. A request that the socket does not take at once breaks the lane (it holds tens of thousands of them).
//
// Invariant: pages are claimed, posted and sent in one critical section, so whoever takes the lane away afterwards finds
// every claim in a slot.

import { writeSync } from 'node:fs';
import {
  createPageFrame,
  PAGE_FLAG_URGENT,
  PAGE_FRAME_HEADER_BYTES,
  PageFrameType,
  PageRegion,
  writePageFrame,
} from '@snowflock/protocol/pages';
import { ReadAhead } from './read-ahead.ts';
import {
  Control,
  Counter,
  demandRequestId,
  EXTRA_PART_PAGES,
  EXTRA_PARTS_MAX,
  PageState,
  RING_UNSENT,
  type SharedState,
  Slot,
  SlotKind,
} from './shared-state.ts';

/** Pages in the midst of a window that need no fetching are fetched along if they are no more than this in a row. */
const MAX_GAP_PAGES = 4;
/** The rehearsal is read from its begin to its end, and is to be made of many demands. */
const REHEARSAL_WINDOW_PAGES = 1;

export class DemandSender {
  readonly #state: SharedState;
  readonly #wake: () => void;
  readonly #readAhead = new ReadAhead();
  readonly #limits = { min: 0, max: 0 };
  readonly #frames = Buffer.alloc(PAGE_FRAME_HEADER_BYTES * (1 + EXTRA_PARTS_MAX));
  readonly #frame = createPageFrame();
  #extraFirst = 0;
  #extraCount = 0;

  constructor(options: { readonly state: SharedState; readonly wake: () => void }) {
    this.#state = options.state;
    this.#wake = options.wake;
  }

  /** Claims the pages and asks for them. Returns false, with nothing claimed, when the main thread has to take the READ. */
  send(slot: number, region: number, first: number, count: number): boolean {
    const { control, slots } = this.#state;
    if (Atomics.load(control, Control.laneFd) < 0 || !this.#state.mayAsk(region)) return false;
    this.#state.lockLane();
    try {
      const fd = Atomics.load(control, Control.laneFd);
      if (fd < 0) return false;
      const states = this.#state.statesOf(region);
      const wasCached = Atomics.load(states, first) === PageState.cached;
      if (!this.#claimAll(states, first, count)) return false;
      this.#planExtra(states, { region, first, count, wasCached });
      const at = slot * Slot.words;
      slots[at + Slot.kind] = SlotKind.sent;
      slots[at + Slot.extraFirst] = this.#extraFirst;
      slots[at + Slot.extraCount] = this.#extraCount;
      const length = this.#encode(slot, region, first, count);
      // posted before it is sent: the answer must never find the main thread without the slot
      this.#state.post(slot);
      if (this.#write(fd, length)) return true;
      Atomics.store(control, Control.laneFd, -1);
      this.#state.post(slot | RING_UNSENT);
      this.#wake();
      return true;
    } finally {
      this.#state.unlockLane();
    }
  }

  #claimAll(states: Uint8Array, first: number, count: number): boolean {
    for (let page = first; page < first + count; page++) {
      if (this.#state.claim(states, page) || Atomics.load(states, page) === PageState.zero) continue;
      for (let back = first; back < page; back++) this.#state.unclaim(states, back);
      return false;
    }
    return true;
  }

  /**
   * Decides on extra pages and claims them: one range that begins with the first missing page of the window. Pages that
   * count as cached are fetched again only where the demanded page was one, that is where the kernel dropped pages.
   */
  #planExtra(
    states: Uint8Array,
    demand: { region: number; first: number; count: number; wasCached: boolean },
  ): void {
    const { control } = this.#state;
    this.#limits.min = Atomics.load(control, Control.minWindow);
    this.#limits.max =
      demand.region === PageRegion.rehearsal
        ? REHEARSAL_WINDOW_PAGES
        : Atomics.load(control, Control.maxWindow);
    const window = this.#readAhead.onMiss(demand.region, demand.first, demand.count, this.#limits);
    const start = demand.first + demand.count;
    const end = Math.min(start + window, states.length);
    let first = -1;
    let last = start;
    let gap = 0;
    for (let page = start; page < end && gap <= MAX_GAP_PAGES; page++) {
      const state = Atomics.load(states, page);
      const missing = state === PageState.remote || (demand.wasCached && state === PageState.cached);
      if (missing && this.#state.claim(states, page)) {
        if (first < 0) first = page;
        last = page + 1;
        gap = 0;
      } else if (first >= 0 && state !== PageState.zero) {
        gap++;
      }
    }
    this.#extraFirst = Math.max(first, 0);
    this.#extraCount = first < 0 ? 0 : last - first;
  }

  #encode(slot: number, region: number, first: number, count: number): number {
    const frame = this.#frame;
    const generation = this.#state.slots[slot * Slot.words + Slot.generation] ?? 0;
    frame.type = PageFrameType.read;
    frame.region = region;
    frame.flags = PAGE_FLAG_URGENT | this.#state.multicastFlag;
    frame.pageCount = count;
    frame.firstPage = first;
    frame.requestId = demandRequestId(slot, 0, generation);
    let length = writePageFrame(this.#frames, 0, frame);
    frame.flags = this.#state.aheadFlags;
    for (let done = 0; done < this.#extraCount; done += EXTRA_PART_PAGES) {
      frame.firstPage = this.#extraFirst + done;
      frame.pageCount = Math.min(EXTRA_PART_PAGES, this.#extraCount - done);
      frame.requestId = demandRequestId(slot, 1 + done / EXTRA_PART_PAGES, generation);
      length = writePageFrame(this.#frames, length, frame);
    }
    return length;
  }

  #write(fd: number, length: number): boolean {
    try {
      if (writeSync(fd, this.#frames, 0, length) !== length) return false;
    } catch (error) {
      // EAGAIN: the peer takes nothing any more; EPIPE, ECONNRESET: it is gone. Either way the main thread mends the link.
      if ((error as NodeJS.ErrnoException).code === undefined) throw error;
      return false;
    }
    this.#state.count(Counter.directReads, 1);
    this.#state.count(Counter.sentBytes, length);
    return true;
  }
}
