// The memtap's main thread at work: takes READs from the read worker, fetches what is missing, answers.
//
//   holding --attach--> fetching --source lost--> failed (READs of missing pages get EIO)
//
// Owns every HeldRead and every request on the bulk lane; page states are shared (shared-state.ts has their diagram).
// Single flight: a page is claimed (state wanted) before it is asked for, and whoever finds it claimed waits for that
// answer. READs are answered first, and only pages that no held READ covers go to the store queue.

import {
  checkPageBitmap,
  hasPageData,
  PAGE_BYTES,
  PAGE_FLAG_URGENT,
  PAGE_WIRE_MAX_PAGES,
  pageDataOffset,
  type PageFrame,
  SnowflockError,
} from '@snowflock/protocol';
import type { PageSource } from '../control/schemas.ts';
import { LatencyHistogram } from '../latency-histogram.ts';
import type { PresenceMap } from '../presence-map.ts';
import { ZERO_PAGE } from '../zero-page.ts';
import { Errno } from './fuse/protocol.ts';
import { HeldRead, ReadAnswerer } from './held-reads.ts';
import { isBeingKilled } from './killed-asker.ts';
import { type LaneKind, PageLink } from './page-link.ts';
import {
  Control,
  EXTRA_PART_PAGES,
  generationOfRequest,
  PageState,
  partOfRequest,
  RING_ENTRIES,
  RING_UNSENT,
  sharedNowUs,
  type SharedState,
  Slot,
  SLOT_COUNT,
  SlotKind,
  slotOfRequest,
} from './shared-state.ts';
import type { StoreQueue } from './store-queue.ts';

/** How often askers that were sent a signal are looked at again: the kernel tells of the first signal only. */
const KILL_POLL_MS = 20;

interface BulkRequest {
  readonly region: number;
  readonly firstPage: number;
  readonly pageCount: number;
}

export interface FetcherOptions {
  readonly fuseFd: number;
  readonly state: SharedState;
  readonly queue: StoreQueue;
  readonly sourceTimeoutMs: number;
  readonly onSourceLost: (reason: string) => void;
}

export class Fetcher {
  readonly #options: FetcherOptions;
  readonly #state: SharedState;
  readonly #queue: StoreQueue;
  readonly #answerer: ReadAnswerer;
  readonly #held: HeldRead[] = [];
  readonly #waiting: HeldRead[] = [];
  readonly #bulk = new Map<number, BulkRequest>();
  readonly #dataAt = new Int32Array(PAGE_WIRE_MAX_PAGES);
  readonly #latency = new LatencyHistogram();
  #link: PageLink | undefined;
  #demandPending = 0;
  #nextBulkId = 1;
  #killPoll: NodeJS.Timeout | undefined;
  #lostReason: string | undefined;
  readonly counters = {
    demandReads: 0,
    sharedReads: 0,
    demandPages: 0,
    prefetchedPages: 0,
    droppedPages: 0,
    learnedZeroPages: 0,
    interruptedReads: 0,
  };

  constructor(options: FetcherOptions) {
    this.#options = options;
    this.#state = options.state;
    this.#queue = options.queue;
    this.#answerer = new ReadAnswerer(options.fuseFd);
    for (let slot = 0; slot < SLOT_COUNT; slot++) this.#held.push(new HeldRead(slot));
    Atomics.store(this.#state.control, Control.laneFd, -1);
  }

  get lostReason(): string | undefined {
    return this.#lostReason;
  }

  get attached(): boolean {
    return this.#link !== undefined;
  }

  stats() {
    const link = this.#link;
    return {
      ...this.counters,
      demandBytes: this.counters.demandPages * PAGE_BYTES,
      prefetchedBytes: this.counters.prefetchedPages * PAGE_BYTES,
      wireBytesReceived: link?.receivedBytes ?? 0,
      wireBytesSent: link?.sentBytes ?? 0,
      reconnects: link?.reconnects ?? 0,
      heldReads: this.#waiting.length,
      missLatency: this.#latency.summary(),
    };
  }

  /** Says what is where, and begins to fetch. Once. */
  attach(options: {
    readonly sources: readonly PageSource[];
    readonly key: Buffer;
    readonly presence: PresenceMap;
  }): void {
    if (this.#link !== undefined) throw new SnowflockError('bad-request', 'this memtap is attached already');
    const ram = this.#state.states[0];
    const { presence } = options;
    if (presence.pageCount !== ram.length)
      throw new SnowflockError(
        'bad-request',
        `the presence map has ${presence.pageCount} pages, the RAM file ${ram.length}`,
      );
    let page = presence.next(0, false);
    while (page < ram.length) {
      const end = presence.next(page, true);
      ram.fill(PageState.zero, page, end);
      page = presence.next(end, false);
    }
    this.#link = new PageLink({
      sources: options.sources,
      key: options.key,
      sourceTimeoutMs: this.#options.sourceTimeoutMs,
      onUp: (fd) => this.#linkUp(fd),
      onDown: () => this.#linkDown(),
      onFailed: (reason) => this.#linkFailed(reason),
      onData: (which, frame, bytes, offset) => this.#receive(which, frame, bytes, offset),
      onTick: () => this.drain(),
      demandPending: () => this.#demandPending,
      bulkPending: () => this.#bulk.size,
    });
    this.#link.start();
    this.drain();
    this.#resolveAll();
  }

  close(): void {
    clearInterval(this.#killPoll);
    this.#revokeLane();
    this.#link?.close();
  }

  /** Takes everything that the read worker posted. */
  drain(): void {
    const { control, ring } = this.#state;
    Atomics.store(control, Control.wakePending, 0);
    let tail = Atomics.load(control, Control.ringTail);
    while (tail !== Atomics.load(control, Control.ringHead)) {
      const entry = Atomics.load(ring, (tail >>> 0) % RING_ENTRIES);
      tail = (tail + 1) | 0;
      Atomics.store(control, Control.ringTail, tail);
      if ((entry & RING_UNSENT) !== 0) this.#link?.drop('the demand lane took no request');
      else this.#adopt(entry);
    }
  }

  #adopt(slot: number): void {
    const words = this.#state.slots;
    const at = slot * Slot.words;
    const word = (index: number): number => words[at + index] ?? 0;
    const held = this.#held[slot];
    if (held === undefined) throw new Error(`slot ${slot} does not exist`);
    held.uniqueLow = word(Slot.uniqueLow);
    held.uniqueHigh = word(Slot.uniqueHigh);
    if (word(Slot.kind) === SlotKind.interrupt) {
      this.#interrupt(held.uniqueLow, held.uniqueHigh);
      this.#freeSlot(held);
      return;
    }
    held.region = word(Slot.region);
    held.offset = (word(Slot.offsetLow) >>> 0) + (word(Slot.offsetHigh) >>> 0) * 2 ** 32;
    held.sizeBytes = word(Slot.sizeBytes);
    held.firstPage = Math.floor(held.offset / PAGE_BYTES);
    held.pageCount = Math.ceil((held.offset + held.sizeBytes) / PAGE_BYTES) - held.firstPage;
    held.missing = held.pageCount;
    held.pid = word(Slot.pid);
    held.timeUs = this.#state.times[(at + Slot.timeWord) >>> 1] ?? 0;
    held.interrupted = false;
    held.generation = word(Slot.generation);
    held.extraFirst = word(Slot.extraFirst);
    held.extraCount = word(Slot.extraCount);
    held.pendingParts = 0;
    held.waiting = true;
    held.position = this.#waiting.push(held) - 1;
    this.#answerer.prepare(held);
    if (word(Slot.kind) === SlotKind.sent) {
      const parts = 1 + Math.ceil(held.extraCount / EXTRA_PART_PAGES);
      held.pendingParts = 2 ** parts - 1;
      this.#demandPending += parts;
      this.counters.demandReads++;
    } else {
      this.#resolve(held);
    }
  }

  /** Brings a held READ on: fills what is here, asks for what nobody asked for yet. */
  #resolve(held: HeldRead): void {
    if (this.#lostReason !== undefined) return this.#finishError(held, Errno.EIO);
    const link = this.#link;
    if (link === undefined) return;
    const states = this.#state.statesOf(held.region);
    const end = held.firstPage + held.pageCount;
    let runStart = -1;
    let asked = false;
    for (let page = held.firstPage; page < end && held.waiting; page++) {
      const wants = !held.isFilled(page) && this.#resolvePage(held, states, page, link.up);
      if (wants && runStart < 0) runStart = page;
      if (runStart >= 0 && (!wants || page + 1 === end || page + 1 - runStart === PAGE_WIRE_MAX_PAGES)) {
        this.#ask(link, {
          region: held.region,
          firstPage: runStart,
          pageCount: (wants ? page + 1 : page) - runStart,
        });
        asked = true;
        runStart = -1;
      }
    }
    if (asked) this.counters.demandReads++;
    else if (!held.waiting) this.counters.sharedReads++;
  }

  /** True when the page was claimed and has to be asked for. */
  #resolvePage(held: HeldRead, states: Uint8Array, page: number, up: boolean): boolean {
    for (;;) {
      const state = Atomics.load(states, page);
      switch (state) {
        case PageState.zero:
          this.#fillPage(held, page, ZERO_PAGE, 0);
          return false;
        case PageState.wanted:
          return false;
        case PageState.queued:
        case PageState.storing: {
          const at = this.#queue.find(held.region, page);
          // not found: the store worker finished in this moment, look again
          if (at < 0) continue;
          // the store worker must not begin with a page that a READ holds; if it has, it waits for our answer only
          Atomics.compareExchange(states, page, PageState.queued, PageState.cached);
          this.#fillPage(held, page, this.#queue.data, at);
          return false;
        }
        default:
          if (!up) return false;
          if (this.#state.claim(states, page)) return true;
      }
    }
  }

  #ask(link: PageLink, run: BulkRequest): void {
    const requestId = this.#nextBulkId;
    this.#nextBulkId = (this.#nextBulkId + 1) >>> 0;
    this.#bulk.set(requestId, run);
    link.request({ requestId, flags: PAGE_FLAG_URGENT, ...run });
  }

  #fillPage(held: HeldRead, page: number, from: Buffer, offset: number): void {
    if (held.single) {
      this.#answerer.answer(held, from.subarray(offset, offset + PAGE_BYTES));
      this.#finish(held);
    } else if (this.#answerer.fill(held, page, from, offset)) {
      this.#answerer.answerAssembled(held);
      this.#finish(held);
    }
  }

  #finish(held: HeldRead): void {
    this.#latency.record(sharedNowUs() - held.timeUs);
    this.#unlist(held);
  }

  #finishError(held: HeldRead, errno: number): void {
    this.#answerer.answerError(held, errno);
    this.#unlist(held);
  }

  #unlist(held: HeldRead): void {
    held.waiting = false;
    const last = this.#waiting.pop();
    if (last !== undefined && last !== held) {
      this.#waiting[held.position] = last;
      last.position = held.position;
    }
    if (held.pendingParts === 0) this.#freeSlot(held);
  }

  #freeSlot(held: HeldRead): void {
    const { slots, control } = this.#state;
    Atomics.store(slots, held.slot * Slot.words + Slot.used, 0);
    Atomics.add(control, Control.slotFreed, 1);
    Atomics.notify(control, Control.slotFreed);
  }

  #receive(which: LaneKind, frame: PageFrame, bytes: Buffer, offset: number): void {
    checkPageBitmap(bytes, offset, frame);
    this.drain();
    const slot = which === 'demand' ? this.#takeDemand(frame) : this.#takeBulk(frame);
    this.#deliver(frame, bytes, offset);
    if (slot !== undefined && !slot.waiting && slot.pendingParts === 0) this.#freeSlot(slot);
  }

  /** Checks that the frame answers a part of a demand that is under way, and ends that part. */
  #takeDemand(frame: PageFrame): HeldRead {
    const held = this.#held[slotOfRequest(frame.requestId)];
    const part = partOfRequest(frame.requestId);
    const bit = 2 ** part;
    if (
      held === undefined ||
      generationOfRequest(frame.requestId) !== held.generation ||
      (held.pendingParts & bit) === 0
    )
      throw new SnowflockError('bad-request', 'it answered a request that was not made');
    const skip = (part - 1) * EXTRA_PART_PAGES;
    const first = part === 0 ? held.firstPage : held.extraFirst + skip;
    const count = part === 0 ? held.pageCount : Math.min(EXTRA_PART_PAGES, held.extraCount - skip);
    checkAnswer(frame, { region: held.region, firstPage: first, pageCount: count });
    held.pendingParts &= ~bit;
    this.#demandPending--;
    return held;
  }

  #takeBulk(frame: PageFrame): undefined {
    const request = this.#bulk.get(frame.requestId);
    if (request === undefined)
      throw new SnowflockError('bad-request', 'it answered a request that was not made');
    checkAnswer(frame, request);
    this.#bulk.delete(frame.requestId);
    return undefined;
  }

  #deliver(frame: PageFrame, bytes: Buffer, offset: number): void {
    let at = offset + pageDataOffset(frame.pageCount);
    for (let index = 0; index < frame.pageCount; index++) {
      const present = hasPageData(bytes, offset, index);
      this.#dataAt[index] = present ? at : -1;
      if (present) at += PAGE_BYTES;
    }
    const states = this.#state.statesOf(frame.region);
    const end = frame.firstPage + frame.pageCount;
    for (let index = this.#waiting.length - 1; index >= 0; index--) {
      const held = this.#waiting[index];
      if (held?.overlaps(frame.region, frame.firstPage, end) === true)
        this.#deliverTo(held, states, frame, bytes);
    }
    this.#storeRest(states, frame, bytes);
  }

  #deliverTo(held: HeldRead, states: Uint8Array, frame: PageFrame, bytes: Buffer): void {
    const first = Math.max(held.firstPage, frame.firstPage);
    const end = Math.min(held.firstPage + held.pageCount, frame.firstPage + frame.pageCount);
    for (let page = first; page < end; page++) {
      const at = this.#dataAt[page - frame.firstPage] ?? -1;
      if (at < 0) {
        if (Atomics.exchange(states, page, PageState.zero) !== PageState.zero)
          this.counters.learnedZeroPages++;
        this.#fillPage(held, page, ZERO_PAGE, 0);
        continue;
      }
      Atomics.compareExchange(states, page, PageState.wanted, PageState.cached);
      this.counters.demandPages++;
      this.#fillPage(held, page, bytes, at);
    }
  }

  /** Pages of the frame that nobody waits for: learned zeros, and runs of data for the store queue. */
  #storeRest(states: Uint8Array, frame: PageFrame, bytes: Buffer): void {
    let run = 0;
    for (let index = 0; index <= frame.pageCount; index++) {
      const page = frame.firstPage + index;
      const wanted = index < frame.pageCount && Atomics.load(states, page) === PageState.wanted;
      const at = wanted ? (this.#dataAt[index] ?? -1) : -1;
      if (wanted && at < 0) {
        Atomics.store(states, page, PageState.zero);
        this.counters.learnedZeroPages++;
      }
      if (at >= 0) {
        run++;
        continue;
      }
      if (run > 0)
        this.#storeRun(states, {
          region: frame.region,
          firstPage: page - run,
          pageCount: run,
          from: bytes,
          offset: this.#dataAt[index - run] ?? 0,
        });
      run = 0;
    }
  }

  #storeRun(
    states: Uint8Array,
    run: { region: number; firstPage: number; pageCount: number; from: Buffer; offset: number },
  ): void {
    const end = run.firstPage + run.pageCount;
    for (let page = run.firstPage; page < end; page++) Atomics.store(states, page, PageState.queued);
    this.counters.prefetchedPages += run.pageCount;
    if (this.#queue.push(run)) return;
    this.counters.droppedPages += run.pageCount;
    for (let page = run.firstPage; page < end; page++) Atomics.store(states, page, PageState.remote);
  }

  #linkUp(demandFd: number): void {
    Atomics.store(this.#state.control, Control.laneFd, demandFd);
    this.drain();
    this.#resolveAll();
  }

  #revokeLane(): void {
    this.#state.lockLane();
    Atomics.store(this.#state.control, Control.laneFd, -1);
    this.#state.unlockLane();
  }

  /** Everything under way is lost: pages go back to remote, READs wait for the next link. */
  #linkDown(): void {
    this.#revokeLane();
    this.drain();
    for (const { region, firstPage, pageCount } of this.#bulk.values())
      this.#giveBack(region, firstPage, pageCount);
    this.#bulk.clear();
    for (const held of this.#held) {
      if (held.pendingParts === 0) continue;
      this.#giveBack(held.region, held.firstPage, held.pageCount);
      this.#giveBack(held.region, held.extraFirst, held.extraCount);
      held.pendingParts = 0;
      if (!held.waiting) this.#freeSlot(held);
    }
    this.#demandPending = 0;
  }

  #giveBack(region: number, firstPage: number, pageCount: number): void {
    const states = this.#state.statesOf(region);
    for (let page = firstPage; page < firstPage + pageCount; page++) this.#state.unclaim(states, page);
  }

  #linkFailed(reason: string): void {
    this.#lostReason = reason;
    Atomics.store(this.#state.control, Control.failed, 1);
    this.drain();
    while (this.#waiting.length > 0) {
      const held = this.#waiting[this.#waiting.length - 1];
      if (held !== undefined) this.#finishError(held, Errno.EIO);
    }
    this.#options.onSourceLost(reason);
  }

  #resolveAll(): void {
    for (const held of [...this.#waiting]) if (held.waiting && held.pendingParts === 0) this.#resolve(held);
  }

  #interrupt(uniqueLow: number, uniqueHigh: number): void {
    const held = this.#waiting.find((read) => read.uniqueLow === uniqueLow && read.uniqueHigh === uniqueHigh);
    if (held === undefined) return;
    held.interrupted = true;
    this.#pollKilled();
  }

  /** Lets go of askers that are being killed. Others were sent a signal only and go on waiting. */
  #pollKilled(): void {
    let left = false;
    for (const held of [...this.#waiting]) {
      if (!held.interrupted) continue;
      if (isBeingKilled(held.pid)) {
        this.counters.interruptedReads++;
        this.#finishError(held, Errno.EINTR);
      } else {
        left = true;
      }
    }
    clearInterval(this.#killPoll);
    this.#killPoll = left ? setInterval(() => this.#pollKilled(), KILL_POLL_MS) : undefined;
  }
}

function checkAnswer(frame: PageFrame, asked: BulkRequest): void {
  if (
    frame.region === asked.region &&
    frame.firstPage === asked.firstPage &&
    frame.pageCount === asked.pageCount
  )
    return;
  throw new SnowflockError('bad-request', 'it answered with other pages than were asked for');
}
