// What becomes of pages that arrive: held READs are answered first, then the rest goes to the store queue.
//
// Invariant: a page is stored only if it is `wanted` when its data arrives and no held READ covers it.

import {
  hasPageData,
  isMulticastPage,
  PAGE_BYTES,
  PAGE_WIRE_MAX_PAGES,
  pageDataOffset,
  type PageFrame,
  PageFrameType,
  PageRegion,
  splitDataOffset,
} from '@snowflock/protocol/pages';
import { ZERO_PAGE } from '../zero-page.ts';
import type { HeldRead } from './held-reads.ts';
import { PageState, type SharedState } from './shared-state.ts';
import type { SlotTable } from './slot-table.ts';
import type { StoreQueue } from './store-queue.ts';

export interface DeliveryCounters {
  demandPages: number;
  prefetchedPages: number;
  /** Those of them that are the disk's. */
  demandDiskPages: number;
  prefetchedDiskPages: number;
  /** Prefetched pages for which the store queue had no room. */
  droppedPages: number;
  learnedZeroPages: number;
}

function noDeliveries(): DeliveryCounters {
  return {
    demandPages: 0,
    prefetchedPages: 0,
    demandDiskPages: 0,
    prefetchedDiskPages: 0,
    droppedPages: 0,
    learnedZeroPages: 0,
  };
}

const ZERO = -1;
const ELSEWHERE = -2;

export class Delivery {
  counters: DeliveryCounters = noDeliveries();
  readonly #state: SharedState;
  readonly #slots: SlotTable;
  readonly #queue: StoreQueue;
  /** Where in the frame each page's data begins; ZERO, or ELSEWHERE: it comes by multicast. */
  readonly #dataAt = new Int32Array(PAGE_WIRE_MAX_PAGES);

  constructor(options: {
    readonly state: SharedState;
    readonly slots: SlotTable;
    readonly queue: StoreQueue;
  }) {
    this.#state = options.state;
    this.#slots = options.slots;
    this.#queue = options.queue;
  }

  clearCounters(): void {
    this.counters = noDeliveries();
  }

  /** Takes a checked DATA or SPLIT frame. Returns how many of its pages had data. */
  deliver(frame: PageFrame, bytes: Buffer, offset: number): number {
    const { pageCount, type } = frame;
    const dataOffset =
      offset + (type === PageFrameType.split ? splitDataOffset(pageCount) : pageDataOffset(pageCount));
    let at = dataOffset;
    for (let index = 0; index < pageCount; index++) {
      const present = hasPageData(bytes, offset, index);
      const elsewhere = !present && isMulticastPage(bytes, offset, frame, index);
      this.#dataAt[index] = present ? at : elsewhere ? ELSEWHERE : ZERO;
      if (present) at += PAGE_BYTES;
    }
    const states = this.#state.statesOf(frame.region);
    const end = frame.firstPage + frame.pageCount;
    const { waiting } = this.#slots;
    // backwards: an answered READ's place is taken by the last one, which was looked at already
    for (let index = waiting.length - 1; index >= 0; index--) {
      const held = waiting[index];
      if (held?.overlaps(frame.region, frame.firstPage, end) === true)
        this.#deliverTo(held, states, frame, bytes);
    }
    this.#storeRest(states, frame, bytes);
    return (at - dataOffset) / PAGE_BYTES;
  }

  #deliverTo(held: HeldRead, states: Uint8Array, frame: PageFrame, bytes: Buffer): void {
    const first = Math.max(held.firstPage, frame.firstPage);
    const end = Math.min(held.firstPage + held.pageCount, frame.firstPage + frame.pageCount);
    // Pages that came before may leave it answered in the middle of the frame.
    for (let page = first; page < end && held.waiting; page++) {
      const at = this.#dataAt[page - frame.firstPage] ?? ZERO;
      if (at === ELSEWHERE) continue;
      if (at === ZERO) {
        this.#learnZero(states, page);
        this.#slots.fill(held, page, ZERO_PAGE, 0);
      } else {
        Atomics.compareExchange(states, page, PageState.wanted, PageState.cached);
        this.#countHeld(held);
        this.#slots.fill(held, page, bytes, at);
      }
    }
  }

  #countHeld({ ahead, region }: HeldRead): void {
    if (ahead) this.counters.prefetchedPages++;
    else this.counters.demandPages++;
    if (region !== PageRegion.disk) return;
    if (ahead) this.counters.prefetchedDiskPages++;
    else this.counters.demandDiskPages++;
  }

  #storeRest(states: Uint8Array, frame: PageFrame, bytes: Buffer): void {
    let run = 0;
    for (let index = 0; index <= frame.pageCount; index++) {
      const page = frame.firstPage + index;
      const wanted = index < frame.pageCount && Atomics.load(states, page) === PageState.wanted;
      const at = wanted ? (this.#dataAt[index] ?? ZERO) : ELSEWHERE;
      if (at >= 0) {
        run++;
        continue;
      }
      if (run > 0) this.#storeRun(states, { frame, firstIndex: index - run, pageCount: run, bytes });
      run = 0;
      if (at === ZERO) this.#learnZero(states, page);
    }
  }

  #learnZero(states: Uint8Array, page: number): void {
    if (Atomics.exchange(states, page, PageState.zero) !== PageState.zero) this.counters.learnedZeroPages++;
  }

  #storeRun(
    states: Uint8Array,
    run: {
      readonly frame: PageFrame;
      readonly firstIndex: number;
      readonly pageCount: number;
      readonly bytes: Buffer;
    },
  ): void {
    const { frame, firstIndex, pageCount, bytes } = run;
    const firstPage = frame.firstPage + firstIndex;
    // before the push: the store worker takes only queued pages
    for (let page = firstPage; page < firstPage + pageCount; page++)
      Atomics.store(states, page, PageState.queued);
    this.counters.prefetchedPages += pageCount;
    if (frame.region === PageRegion.disk) this.counters.prefetchedDiskPages += pageCount;
    const offset = this.#dataAt[firstIndex] ?? 0;
    if (this.#queue.push({ region: frame.region, firstPage, pageCount, from: bytes, offset })) return;
    this.counters.droppedPages += pageCount;
    for (let page = firstPage; page < firstPage + pageCount; page++)
      Atomics.store(states, page, PageState.remote);
  }
}
