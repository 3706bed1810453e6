// The main thread's side of the slots: every READ that was posted, from adoption to the slot's return.
//
// Owns the HeldRead objects and the list of those that wait. Invariant: a slot goes back to the read worker exactly once,
// when its READ is answered and no part of its demand is under way any more.

import { PAGE_BYTES, type PageFrame } from '@snowflock/protocol/pages';
import { LatencyHistogram } from '../latency-histogram.ts';
import type { AskerAccounts } from './asker-accounts.ts';
import { HeldRead, type ReadAnswerer } from './held-reads.ts';
import {
  EXTRA_PART_PAGES,
  sharedNowUs,
  type SharedState,
  Slot,
  SLOT_COUNT,
  SlotKind,
} from './shared-state.ts';

export class SlotTable {
  readonly latency = new LatencyHistogram();
  readonly waiting: HeldRead[] = [];
  readonly all: readonly HeldRead[];
  readonly #state: SharedState;
  readonly #answerer: ReadAnswerer;
  readonly #accounts: AskerAccounts;

  constructor(options: {
    readonly state: SharedState;
    readonly answerer: ReadAnswerer;
    readonly accounts: AskerAccounts;
  }) {
    this.#state = options.state;
    this.#answerer = options.answerer;
    this.#accounts = options.accounts;
    this.all = Array.from({ length: SLOT_COUNT }, (_, slot) => new HeldRead(slot));
  }

  kindOf(slot: number): number {
    return this.#word(slot, Slot.kind);
  }

  uniqueOf(slot: number): { readonly low: number; readonly high: number } {
    return { low: this.#word(slot, Slot.uniqueLow), high: this.#word(slot, Slot.uniqueHigh) };
  }

  /** Takes a posted READ over from its slot; it waits from now on. */
  adopt(slot: number): HeldRead {
    const held = this.all[slot];
    if (held === undefined) throw new Error(`slot ${slot} does not exist`);
    held.uniqueLow = this.#word(slot, Slot.uniqueLow);
    held.uniqueHigh = this.#word(slot, Slot.uniqueHigh);
    held.region = this.#word(slot, Slot.region);
    held.offset =
      (this.#word(slot, Slot.offsetLow) >>> 0) + (this.#word(slot, Slot.offsetHigh) >>> 0) * 2 ** 32;
    held.sizeBytes = this.#word(slot, Slot.sizeBytes);
    held.firstPage = Math.floor(held.offset / PAGE_BYTES);
    held.pageCount = Math.ceil((held.offset + held.sizeBytes) / PAGE_BYTES) - held.firstPage;
    held.missing = held.pageCount;
    held.pid = this.#word(slot, Slot.pid);
    held.timeUs = this.#state.times[(slot * Slot.words + Slot.timeWord) >>> 1] ?? 0;
    held.interrupted = false;
    held.generation = this.#word(slot, Slot.generation);
    held.extraFirst = this.#word(slot, Slot.extraFirst);
    held.extraCount = this.#word(slot, Slot.extraCount);
    held.ahead = this.kindOf(slot) === SlotKind.ahead;
    const parts = this.kindOf(slot) === SlotKind.sent ? 1 + Math.ceil(held.extraCount / EXTRA_PART_PAGES) : 0;
    held.pendingParts = (1 << parts) - 1;
    held.waiting = true;
    held.position = this.waiting.push(held) - 1;
    this.#answerer.prepare(held);
    return held;
  }

  find(unique: { readonly low: number; readonly high: number }): HeldRead | undefined {
    return this.waiting.find((held) => held.uniqueLow === unique.low && held.uniqueHigh === unique.high);
  }

  /** Thread of a READ that waits for pages of the frame; 0 when none does any more. */
  askerOf(frame: PageFrame): number {
    const end = frame.firstPage + frame.pageCount;
    return this.waiting.find((held) => held.overlaps(frame.region, frame.firstPage, end))?.pid ?? 0;
  }

  /** Gives a READ one of its pages, and answers it when that was the last. */
  fill(held: HeldRead, page: number, from: Buffer, offset: number): void {
    if (held.single) this.#answerer.answerPage(held, from, offset);
    else if (this.#answerer.fill(held, page, from, offset)) this.#answerer.answerAssembled(held);
    else return;
    if (!held.ahead) this.#noteWait(held);
    this.#unlist(held);
  }

  #noteWait(held: HeldRead): void {
    const us = sharedNowUs() - held.timeUs;
    this.latency.record(us);
    this.#accounts.waited(held.pid, us);
  }

  fail(held: HeldRead, errno: number): void {
    this.#answerer.answerError(held, errno);
    this.#unlist(held);
  }

  /** One part of a demand ended. Call settle() when its pages are delivered. */
  endPart(held: HeldRead, part: number): void {
    held.pendingParts &= ~(1 << part);
  }

  /** Gives the slot back if nothing is under way for it any more. */
  settle(held: HeldRead): void {
    if (!held.waiting && held.pendingParts === 0) this.free(held.slot);
  }

  /** All parts under way are lost. */
  abandonParts(held: HeldRead): void {
    held.pendingParts = 0;
    this.settle(held);
  }

  free(slot: number): void {
    const { slots } = this.#state;
    Atomics.store(slots, slot * Slot.words + Slot.used, 0);
    // nobody is woken: the read worker looks again by itself, in the rare case that it found none
  }

  #unlist(held: HeldRead): void {
    held.waiting = false;
    const last = this.waiting.pop();
    if (last !== undefined && last !== held) {
      this.waiting[held.position] = last;
      last.position = held.position;
    }
    // parts under way: whoever ends the last one settles
    if (held.pendingParts === 0) this.free(held.slot);
  }

  #word(slot: number, index: number): number {
    return this.#state.slots[slot * Slot.words + index] ?? 0;
  }
}
