// What was asked for and has not come yet: parts of demands on the demand lane, runs of pages on the bulk lane.
//
// An answer is taken only for a request that is under way, and only with exactly the pages that were asked for.
// Invariant: every page of a request under way that is not here yet is `wanted`; abandonAll() makes those remote again.

import { type PageFrame, SnowflockError } from '@snowflock/protocol/pages';
import type { HeldRead } from './held-reads.ts';
import {
  EXTRA_PART_PAGES,
  generationOfRequest,
  partOfRequest,
  type SharedState,
  slotOfRequest,
} from './shared-state.ts';
import type { SlotTable } from './slot-table.ts';

export interface PageRun {
  readonly region: number;
  readonly firstPage: number;
  readonly pageCount: number;
}

export class RequestsUnderWay {
  readonly #state: SharedState;
  readonly #slots: SlotTable;
  readonly #bulk = new Map<number, PageRun>();
  #nextBulkId = 1;
  #demandParts = 0;

  constructor(options: { readonly state: SharedState; readonly slots: SlotTable }) {
    this.#state = options.state;
    this.#slots = options.slots;
  }

  get demandParts(): number {
    return this.#demandParts;
  }

  get bulkCount(): number {
    return this.#bulk.size;
  }

  /** The read worker sent this READ's demand and extra pages. */
  demandSent(held: HeldRead): void {
    this.#demandParts += 1 + Math.ceil(held.extraCount / EXTRA_PART_PAGES);
  }

  /** Notes a run that is about to be asked for; returns its request id. */
  bulkAsked(run: PageRun): number {
    const id = this.#nextBulkId;
    this.#nextBulkId = (this.#nextBulkId + 1) >>> 0;
    this.#bulk.set(id, run);
    return id;
  }

  /** Ends the part of a demand that the frame answers. Settle the READ when its pages are delivered, not before. */
  endDemandPart(frame: PageFrame): HeldRead {
    const held = this.#slots.all[slotOfRequest(frame.requestId)];
    const part = partOfRequest(frame.requestId);
    const known = held !== undefined && generationOfRequest(frame.requestId) === held.generation;
    if (!known || (held.pendingParts & (1 << part)) === 0) throw unasked();
    const { region } = held;
    const skip = (part - 1) * EXTRA_PART_PAGES;
    if (part === 0) checkAnswer(frame, { region, firstPage: held.firstPage, pageCount: held.pageCount });
    else {
      const pageCount = Math.min(EXTRA_PART_PAGES, held.extraCount - skip);
      checkAnswer(frame, { region, firstPage: held.extraFirst + skip, pageCount });
    }
    this.#slots.endPart(held, part);
    this.#demandParts--;
    return held;
  }

  endBulk(frame: PageFrame): void {
    const run = this.#bulk.get(frame.requestId);
    if (run === undefined) throw unasked();
    checkAnswer(frame, run);
    this.#bulk.delete(frame.requestId);
  }

  /** The link is gone, and everything under way with it. */
  abandonAll(): void {
    for (const run of this.#bulk.values()) this.#giveBack(run);
    this.#bulk.clear();
    for (const held of this.#slots.all) {
      if (held.pendingParts === 0) continue;
      const { region } = held;
      this.#giveBack({ region, firstPage: held.firstPage, pageCount: held.pageCount });
      this.#giveBack({ region, firstPage: held.extraFirst, pageCount: held.extraCount });
      this.#slots.abandonParts(held);
    }
    this.#demandParts = 0;
  }

  #giveBack({ region, firstPage, pageCount }: PageRun): void {
    const states = this.#state.statesOf(region);
    for (let page = firstPage; page < firstPage + pageCount; page++) this.#state.unclaim(states, page);
  }
}

function checkAnswer(frame: PageFrame, asked: PageRun): void {
  if (
    frame.region === asked.region &&
    frame.firstPage === asked.firstPage &&
    frame.pageCount === asked.pageCount
  )
    return;
  throw new SnowflockError('bad-request', 'it answered with other pages than were asked for');
}

function unasked(): SnowflockError {
  return new SnowflockError('bad-request', 'it answered a request that was not made');
}
