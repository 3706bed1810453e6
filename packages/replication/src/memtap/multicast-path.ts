// What multicast means for a memtap's pages: those that come unasked are kept, those that a SPLIT promises are watched over and, when
// they do not come, asked for again.
//
// Invariant: a promised page is `wanted`, and no request for it is under way; so when the link goes, stop() gives it back.

import {
  isMulticastPage,
  PAGE_FLAG_MISSED,
  PAGE_FLAG_URGENT,
  PAGE_WIRE_MAX_PAGES,
  type PageFrame,
  PageRegion,
  splitLastNumber,
} from '@snowflock/protocol/pages';
import type { MissedPage } from '../mcdist/receiver.ts';
import { ArrivedRun } from './arrived-run.ts';
import type { Delivery } from './delivery.ts';
import type { HeldRead } from './held-reads.ts';
import { MulticastListener } from './multicast-listener.ts';
import type { PageLink } from './page-link.ts';
import type { PageRun, RequestsUnderWay } from './requests-under-way.ts';
import { PageState, type SharedState } from './shared-state.ts';
import type { SlotTable } from './slot-table.ts';

export interface MulticastPathOptions {
  readonly state: SharedState;
  readonly slots: SlotTable;
  readonly requests: RequestsUnderWay;
  readonly delivery: Delivery;
  readonly link: () => PageLink | undefined;
  /** Takes what the read worker posted. */
  readonly drain: () => void;
  /** Brings a held READ on. */
  readonly resolve: (held: HeldRead) => void;
}

export class MulticastPath {
  readonly #options: MulticastPathOptions;
  #listener: MulticastListener | undefined;
  readonly #arrived: ArrivedRun;
  #counters = noPages();
  #before = { bytes: 0, missedPages: 0, replayed: 0, foreign: 0 };

  constructor(options: MulticastPathOptions) {
    this.#options = options;
    const { delivery } = options;
    this.#arrived = new ArrivedRun({
      deliver: (frame, bytes, offset) => void delivery.deliver(frame, bytes, offset),
    });
  }

  /** Listens at `address` to the group of the fork with this key; does nothing without an address. */
  open(options: { readonly key: Buffer; readonly address: string | undefined }): void {
    const { key, address } = options;
    this.close();
    if (address === undefined) return;
    this.#listener = new MulticastListener({
      key,
      address,
      state: this.#options.state,
      wanted: (region, page) => this.#wanted(region, page),
      onPage: (region, page, data) => this.#take(region, page, data),
      onMissed: (pages) => this.#askAgain(pages),
      report: (said) => this.#options.link()?.report(said),
    });
  }

  start(): void {
    this.#listener?.start();
  }

  /** The link is down. */
  stop(): void {
    const { state } = this.#options;
    this.#arrived.flush();
    for (const { region, page } of this.#listener?.stop() ?? []) state.unclaim(state.statesOf(region), page);
  }

  close(): void {
    this.stop();
    this.#listener?.close();
    this.#listener = undefined;
  }

  stats() {
    const counters = this.#listener?.counters;
    if (counters === undefined) return null;
    return {
      hears: counters.hears,
      bytes: counters.bytes - this.#before.bytes,
      ...this.#counters,
      missedPages: counters.missedPages - this.#before.missedPages,
      replayed: counters.replayed - this.#before.replayed,
      foreign: counters.foreign - this.#before.foreign,
    };
  }

  clearCounters(): void {
    this.#counters = noPages();
    this.#before = { ...this.#before, ...this.#listener?.counters };
  }

  /** After a SPLIT's own pages were delivered: the others are here, or promised. */
  promised(frame: Readonly<PageFrame>, bytes: Buffer, offset: number): void {
    const { state, slots, resolve } = this.#options;
    const { region, firstPage, pageCount } = frame;
    this.#arrived.flush();
    const states = state.statesOf(region);
    const number = splitLastNumber(bytes, offset, pageCount);
    let arrived = false;
    for (let index = 0; index < pageCount; index++) {
      if (!isMulticastPage(bytes, offset, frame, index)) continue;
      const page = firstPage + index;
      if (Atomics.load(states, page) !== PageState.wanted) arrived = true;
      else if (this.#listener === undefined) this.#askAgain([{ region, page }]);
      else this.#listener.promise(region, page, number);
    }
    if (!arrived) return;
    // one may have come before the READ that waits for it was known here: it lies in the store queue, or was dropped again
    for (const held of [...slots.waiting])
      if (held.waiting && held.overlaps(region, firstPage, firstPage + pageCount)) resolve(held);
  }

  /**
   * A READ has come for pages that are under way, fetched ahead: at the memserver they may wait for the turn of such pages. They are asked
   * for as what a guest waits for.
   */
  hurry(held: HeldRead): void {
    const { state, requests, link: current } = this.#options;
    const link = current();
    const flags = state.multicastFlag;
    // rehearsal pages come by unicast, whose answers are in order
    if (flags === 0 || held.region === PageRegion.rehearsal) return;
    if (link?.up !== true || !state.mayAsk(held.region)) return;
    // what came meanwhile need not be asked for
    this.#arrived.flush();
    const { region } = held;
    const late: MissedPage[] = [];
    for (let page = held.firstPage; page < held.firstPage + held.pageCount; page++)
      if (this.#isWanted(region, page) && this.#listener?.isPromised(region, page) === false)
        late.push({ region, page });
    if (late.length === 0) return;
    this.#counters.hurriedPages += late.length;
    link.request(
      runsOf(late).map((run) => ({
        requestId: requests.bulkAsked(run),
        flags: flags | PAGE_FLAG_URGENT,
        ...run,
      })),
    );
  }

  #wanted(region: number, page: number): boolean {
    if (region === PageRegion.rehearsal) return false;
    const states = this.#options.state.statesOf(region);
    if (page >= states.length) return false;
    const state = Atomics.load(states, page);
    return state === PageState.remote || state === PageState.wanted;
  }

  #take(region: number, page: number, data: Buffer): void {
    const { state, slots, drain } = this.#options;
    // the READ that waits for it may just have been posted
    drain();
    const states = state.statesOf(region);
    if (state.claimRemote(states, page)) this.#counters.unaskedPages++;
    else if (Atomics.load(states, page) === PageState.wanted) this.#counters.awaitedPages++;
    else return;
    this.#arrived.add(region, page, data);
    if (slots.waiting.some((held) => held.overlaps(region, page, page + 1))) this.#arrived.flush();
  }

  /** Pages that did not come: over the lane, and at once for whoever waits. */
  #askAgain(pages: readonly MissedPage[]): void {
    const { state, slots, requests, link: current } = this.#options;
    const link = current();
    if (link?.up !== true) {
      for (const { region, page } of pages) state.unclaim(state.statesOf(region), page);
      return;
    }
    const flags = PAGE_FLAG_MISSED | state.multicastFlag;
    const asked = runsOf(pages.filter(({ region, page }) => this.#isWanted(region, page)));
    if (asked.length === 0) return;
    link.request(
      asked.map((run) => {
        const end = run.firstPage + run.pageCount;
        const urgent = slots.waiting.some((held) => held.overlaps(run.region, run.firstPage, end));
        return {
          requestId: requests.bulkAsked(run),
          flags: urgent ? flags | PAGE_FLAG_URGENT : flags,
          ...run,
        };
      }),
    );
  }

  #isWanted(region: number, page: number): boolean {
    return Atomics.load(this.#options.state.statesOf(region), page) === PageState.wanted;
  }
}

function noPages() {
  return { awaitedPages: 0, unaskedPages: 0, hurriedPages: 0 };
}

/** Pages in ascending order, as runs. */
function runsOf(pages: readonly MissedPage[]): PageRun[] {
  const runs: { region: number; firstPage: number; pageCount: number }[] = [];
  for (const { region, page } of pages) {
    const last = runs.at(-1);
    const follows = last?.region === region && last.firstPage + last.pageCount === page;
    if (last !== undefined && follows && last.pageCount < PAGE_WIRE_MAX_PAGES) last.pageCount++;
    else runs.push({ region, firstPage: page, pageCount: 1 });
  }
  return runs;
}
