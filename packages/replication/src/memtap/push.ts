// Pages that come because others needed them: the source tells which (heard-needs.ts), this decides what is fetched of it, and when.
//
//   stopped --link up, snapshot there, attached--> told of needs --window, budget--> asked for --> answered
//           <--link down--
//
// The source names pages and this end asks for them, in place of data that comes by itself: nothing is sent that is here or on its way
// already, and whoever receives sets the pace. Never in the way of a fault: these READs are not urgent, few are under way at a time, and
// what a guest comes to wait for meanwhile is answered first by both ends.
//
// Invariant: the pages under way are bounded, whatever the source says.

import { PAGE_FLAG_EARLIER, PageRegion, type PageFrame } from '@snowflock/protocol/pages';
import type { PresenceMap } from '../presence-map.ts';
import type { HeardNeeds } from './heard-needs.ts';
import type { PageLink } from './page-link.ts';
import { prefetchRuns } from './prefetch.ts';
import { BLOCK_PAGES, PushBudget } from './push-budget.ts';
import type { RequestsUnderWay } from './requests-under-way.ts';
import { Control, PageState, type SharedState } from './shared-state.ts';
import type { StoreQueue } from './store-queue.ts';

/** Told of at a time, and told of anew when so few are left. */
const TOLD_PAGES = 1024;
const TOLD_LOW_PAGES = 512;
/** 1 MiB under way; on a narrow link 128 KiB, which a fault waits behind for 10 ms at 100 Mbit/s. */
const WINDOW_PAGES = 256;
const NARROW_WINDOW_PAGES = 32;
/** Entries on their way to the page cache; more would fill the store queue, which drops what it has no room for. */
const QUEUED_MAX = 8;
const QUEUE_POLL_MS = 1;

export interface PushOptions {
  readonly state: SharedState;
  readonly queue: StoreQueue;
  readonly requests: RequestsUnderWay;
  readonly needs: HeardNeeds;
  readonly link: () => PageLink | undefined;
}

export class Push {
  readonly #options: PushOptions;
  readonly #ram: Uint8Array;
  readonly #budget = new PushBudget();
  readonly #underWay = new Map<number, number>();
  #underWayPages = 0;
  /** Of the list of needs: the first that was not decided on yet. */
  #next = 0;
  #running = false;
  #elsewhere: PresenceMap | undefined;
  #timer: NodeJS.Timeout | undefined;

  constructor(options: PushOptions) {
    this.#options = options;
    this.#ram = options.state.statesOf(PageRegion.ram);
  }

  stats() {
    const { pushedPages, heldBackPages, missedPages, usedPages } = this.#budget;
    return { toldPages: this.#options.needs.length, pushedPages, usedPages, heldBackPages, missedPages };
  }

  /** The link is up, its source has the snapshot, and what is where is known. `elsewhere`: pages that come in another way. */
  start(elsewhere: PresenceMap | undefined): void {
    if (this.#running) return;
    this.#running = true;
    this.#elsewhere = elsewhere;
    this.#pump();
  }

  /** The link is down, and what was under way lost: the next one begins anew, with what is not here. */
  stop(): void {
    this.#running = false;
    clearTimeout(this.#timer);
    this.#timer = undefined;
    this.#underWay.clear();
    this.#underWayPages = 0;
    this.#next = 0;
  }

  /** The list of needs has grown. */
  told({ flags }: Readonly<PageFrame>): void {
    if ((flags & PAGE_FLAG_EARLIER) !== 0) this.#budget.trustEarlier();
    this.#pumpSoon(0);
  }

  /** The answer to one of the bulk lane's requests is here. */
  answered(requestId: number): void {
    const pages = this.#underWay.get(requestId);
    if (pages === undefined) return;
    this.#underWay.delete(requestId);
    this.#underWayPages -= pages;
    this.#pump();
  }

  /** A READ of RAM came for pages that were not here. */
  missed(firstPage: number, pageCount: number): void {
    if (this.#budget.missed(firstPage, pageCount)) this.#pumpSoon(0);
  }

  #pumpSoon(delayMs: number): void {
    this.#timer ??= setTimeout(() => {
      this.#timer = undefined;
      this.#pump();
    }, delayMs);
  }

  /** Asks for what may be asked for now, and to be told of more when little is left. */
  #pump(): void {
    const { link, queue, state } = this.#options;
    const up = link();
    if (!this.#running || up?.up !== true) return;
    const narrow = Atomics.load(state.control, Control.narrow) !== 0;
    const window = narrow ? NARROW_WINDOW_PAGES : WINDOW_PAGES;
    const pages: number[] = [];
    while (this.#underWayPages + pages.length < window && this.#budget.left > 0) {
      if (queue.depth > QUEUED_MAX) {
        this.#pumpSoon(QUEUE_POLL_MS);
        break;
      }
      const block = this.#nextBlock();
      if (block.length === 0) break;
      if (this.#budget.take(block)) pages.push(...block);
    }
    this.#ask(up, pages);
    this.#askToBeTold();
  }

  /** The next few pages that are neither here nor on their way. */
  #nextBlock(): number[] {
    const block: number[] = [];
    for (; block.length < BLOCK_PAGES; this.#next++) {
      const page = this.#options.needs.at(this.#next);
      if (page === undefined) break;
      const missing = Atomics.load(this.#ram, page) === PageState.remote;
      if (missing && this.#elsewhere?.has(page) !== true) block.push(page);
    }
    return block;
  }

  #ask(link: PageLink, pages: readonly number[]): void {
    const { state, requests } = this.#options;
    const wanted = (page: number): boolean => state.claimRemote(this.#ram, page);
    const runs = prefetchRuns(pages, { wanted, maxRunPages: BLOCK_PAGES, maxGapPages: 0 });
    if (runs.length === 0) return;
    link.request(
      runs.map((run) => {
        const asked = { region: PageRegion.ram, ...run };
        const requestId = requests.bulkAsked(asked);
        this.#underWay.set(requestId, run.pageCount);
        this.#underWayPages += run.pageCount;
        return { requestId, flags: state.aheadFlags, ...asked };
      }),
    );
  }

  #askToBeTold(): void {
    const { needs } = this.#options;
    if (this.#budget.left > 0 && needs.wanted - this.#next < TOLD_LOW_PAGES)
      needs.want(this.#next + TOLD_PAGES);
  }
}
