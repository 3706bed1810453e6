// The memtap's main thread at work: takes READs from the read worker, fetches what is missing, answers.
//
//   holding --attach--> fetching --source lost--> failed (READs of missing pages get EIO)
//
// Owns the held READs, the link to the source and every request on its bulk lane; page states are shared
// (shared-state.ts has their diagram). Single flight: a page is claimed (state wanted) before it is asked for, and whoever
// finds it claimed waits for that answer.

import {
  checkPageBitmap,
  decompressPages,
  isCompressed,
  PAGE_BYTES,
  PAGE_FLAG_URGENT,
  PAGE_FRAME_MAX_BYTES,
  PageRegion,
  PAGE_WIRE_MAX_PAGES,
  type PageFrame,
  PageFrameType,
  SnowflockError,
} from '@snowflock/protocol/pages';
import type { PageSource } from '../control/schemas.ts';
import type { PresenceMap } from '../presence-map.ts';
import { ZERO_PAGE } from '../zero-page.ts';
import { AskerAccounts } from './asker-accounts.ts';
import { Delivery } from './delivery.ts';
import { Errno } from './fuse/protocol.ts';
import { HeardNeeds } from './heard-needs.ts';
import { type HeldRead, ReadAnswerer } from './held-reads.ts';
import { KilledAskers } from './killed-askers.ts';
import { MulticastPath } from './multicast-path.ts';
import { type LaneKind, PageLink } from './page-link.ts';
import { type PageRun, RequestsUnderWay } from './requests-under-way.ts';
import { Control, PageState, RING_ENTRIES, RING_UNSENT, type SharedState, SlotKind } from './shared-state.ts';
import { prefetchRuns } from './prefetch.ts';
import { Push } from './push.ts';
import { SlotTable } from './slot-table.ts';
import { type NearFile, NearPages } from './near-pages.ts';
import type { StoreQueue } from './store-queue.ts';

/** 256 KiB: an answer that a demand never waits long behind. */
const PREFETCH_RUN_PAGES = 64;

/**
 * Fetched as soon as there is a snapshot: what QEMU touches while it loads the device state, some ten pages where queues begin, and what a READ of
 * each would bring along. The others follow with attach(), or when the VM runs: they would take the CPUs from the load.
 */
const LOADING_PAGES = 16;
const LOADING_PAGES_BEHIND = 3;

export interface FetcherOptions {
  readonly fuseFd: number;
  readonly state: SharedState;
  readonly queue: StoreQueue;
  readonly sourceTimeoutMs: number;
  readonly onSourceLost: (reason: string) => void;
  /** The source can be reached and has no snapshot yet: time to rehearse. */
  readonly onConnected: () => void;
  /** The source has its snapshot, for the first time: what was counted so far was rehearsal. */
  readonly onFrozen: () => void;
}

/** Where the pages are. */
export interface SourceOptions {
  readonly sources: readonly PageSource[];
  readonly key: Buffer;
  /** Of this host's interface that pages for many hosts come in at; undefined: they are fetched by unicast only. */
  readonly multicastAddress: string | undefined;
  /** RAM pages to fetch before they are asked for, in order of need. */
  readonly prefetch: readonly number[];
}

export interface AttachOptions extends SourceOptions {
  readonly presence: PresenceMap;
  readonly near: NearFile | undefined;
}

export class Fetcher {
  readonly #options: FetcherOptions;
  readonly #state: SharedState;
  readonly #queue: StoreQueue;
  readonly #slots: SlotTable;
  readonly #delivery: Delivery;
  readonly #multicast: MulticastPath;
  readonly #accounts = new AskerAccounts();
  readonly #killedAskers: KilledAskers;
  readonly #requests: RequestsUnderWay;
  readonly #near: NearPages;
  /** What others needed, as far as somebody here wants to know. */
  readonly needs: HeardNeeds;
  readonly #push: Push;
  #pushes = false;
  /** RAM pages that another memtap's file has. */
  #nearMap: PresenceMap | undefined;
  #counters = noReads();
  /** A frame that came compressed. */
  readonly #unpacked = Buffer.from(new ArrayBuffer(PAGE_FRAME_MAX_BYTES));
  #link: PageLink | undefined;
  #source: SourceOptions | undefined;
  #attached = false;
  /** What was counted before the source had its snapshot was rehearsal. */
  #counting = false;
  /** Not asked for yet. */
  #prefetch: readonly number[] = [];
  #lostReason: string | undefined;

  constructor(options: FetcherOptions) {
    this.#options = options;
    const { state, queue } = options;
    this.#state = state;
    this.#queue = queue;
    const answerer = new ReadAnswerer(options.fuseFd);
    this.#slots = new SlotTable({ state, answerer, accounts: this.#accounts });
    this.#requests = new RequestsUnderWay({ state, slots: this.#slots });
    this.#delivery = new Delivery({ state, slots: this.#slots, queue });
    this.#multicast = new MulticastPath({
      ...{ state, slots: this.#slots, requests: this.#requests, delivery: this.#delivery },
      link: () => this.#link,
      drain: () => this.drain(),
      resolve: (held) => this.#resolve(held),
    });
    this.#near = new NearPages({
      ...{ state, queue, delivery: this.#delivery },
      drain: () => this.drain(),
      resolveAll: () => this.#resolveAll(),
    });
    const link = (): PageLink | undefined => this.#link;
    this.needs = new HeardNeeds({ link, pageCount: state.statesOf(PageRegion.ram).length });
    this.#push = new Push({ state, queue, requests: this.#requests, needs: this.needs, link });
    this.#killedAskers = new KilledAskers(this.#slots);
    Atomics.store(state.control, Control.laneFd, -1);
  }

  get lostReason(): string | undefined {
    return this.#lostReason;
  }

  get attached(): boolean {
    return this.#attached;
  }

  stats() {
    const link = this.#link;
    const { counters } = this.#delivery;
    return {
      ...this.#counters,
      ...counters,
      nearPages: this.#near.pages,
      demandBytes: counters.demandPages * PAGE_BYTES,
      prefetchedBytes: counters.prefetchedPages * PAGE_BYTES,
      wireBytesReceived: link?.receivedBytes ?? 0,
      wireBytesSent: link?.sentBytes ?? 0,
      reconnects: link?.reconnects ?? 0,
      heldReads: this.#slots.waiting.length,
      interruptedReads: this.#killedAskers.released,
      missLatency: this.#slots.latency.summary(),
      multicast: this.#multicast.stats(),
      push: this.#push.stats(),
      byProcess: this.#accounts.summary(),
    };
  }

  /** Opens the link ahead of the fork: fetching begins the moment that the source has its snapshot. */
  connect(source: SourceOptions): void {
    if (this.#attached) return;
    this.#dropLink();
    this.#openLink(source);
  }

  /** Says what is where, and begins to fetch. Once. */
  attach({ presence, near, ...options }: AttachOptions): void {
    if (this.#attached) throw new SnowflockError('bad-request', 'this memtap is attached already');
    this.#markHoles(presence);
    this.#attached = true;
    this.#nearMap = near?.pages;
    const prefetch = options.prefetch.filter((page) => near?.pages.has(page) !== true);
    if (near) void this.#near.copy(near, options.prefetch);
    if (this.#source === undefined || !sameSource(this.#source, options)) {
      this.#dropLink();
      this.#openLink({ ...options, prefetch });
    } else {
      this.fetchAhead(prefetch);
    }
    this.#link?.expectSnapshot();
    // READs of holes need no link
    this.drain();
    this.#resolveAll();
    this.#startPush();
  }

  /** From now on also what others needed is fetched. */
  push(): void {
    this.#pushes = true;
    this.#startPush();
  }

  /** The presence map says what is a hole, so that it comes first. */
  #startPush(): void {
    if (this.#pushes && this.#attached && this.frozen) this.#push.start(this.#nearMap);
  }

  /** RAM pages in order of need: at once, or as soon as the source has its snapshot. */
  fetchAhead(pages: readonly number[]): void {
    this.#prefetch = pages;
    if (this.frozen) this.#startPrefetch();
  }

  /** The same pages are somewhere else, too: asked for there from now on. What is under way is asked for again. */
  move(source: SourceOptions): void {
    if (!this.#attached) throw new SnowflockError('bad-request', 'this memtap is not attached yet');
    if (this.#lostReason !== undefined) throw new SnowflockError('source-lost', this.#lostReason);
    if (this.#link?.up === true) this.#linkDown();
    this.#dropLink();
    this.#openLink(source);
    this.#link?.expectSnapshot();
  }

  #openLink(source: SourceOptions): void {
    this.#source = source;
    this.#prefetch = source.prefetch;
    Atomics.store(this.#state.control, Control.narrow, 0);
    this.#multicast.open({ key: source.key, address: source.multicastAddress });
    this.#link = new PageLink({
      sources: source.sources,
      key: source.key,
      sourceTimeoutMs: this.#options.sourceTimeoutMs,
      onUp: (fd) => this.#linkUp(fd),
      onFrozen: () => this.#sourceFrozen(),
      onDown: () => this.#linkDown(),
      onFailed: (reason) => this.#linkFailed(reason),
      onPace: (narrow) => Atomics.store(this.#state.control, Control.narrow, narrow ? 1 : 0),
      onData: (which, frame, bytes, offset) => this.#receive(which, frame, bytes, offset),
      onNeeded: (frame) => {
        this.needs.told(frame);
        this.#push.told(frame);
      },
      onTick: () => this.drain(),
      demandPending: () => this.#requests.demandParts,
      bulkPending: () => this.#requests.bulkCount,
    });
    this.#link.start();
  }

  #dropLink(): void {
    this.#link?.close();
    this.#link = undefined;
    this.#source = undefined;
    this.needs.linkDown();
  }

  close(): void {
    this.#near.close();
    this.#push.stop();
    this.#killedAskers.close();
    this.#multicast.close();
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
      else this.#take(entry);
    }
  }

  #take(slot: number): void {
    const kind = this.#slots.kindOf(slot);
    if (kind === SlotKind.interrupt) {
      const unique = this.#slots.uniqueOf(slot);
      this.#slots.free(slot);
      this.#killedAskers.interrupted(unique);
      return;
    }
    const held = this.#slots.adopt(slot);
    if (held.region === PageRegion.ram && !held.ahead) this.#push.missed(held.firstPage, held.pageCount);
    if (kind === SlotKind.sent) {
      this.#requests.demandSent(held);
      this.#counters.demandReads++;
    } else {
      if (!held.ahead) this.#multicast.hurry(held);
      this.#resolve(held);
    }
  }

  #markHoles(presence: PresenceMap): void {
    const ram = this.#state.states[0];
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
  }

  /** Brings a held READ on: fills what is here, asks for what nobody asked for yet. */
  #resolve(held: HeldRead): void {
    if (this.#lostReason !== undefined) {
      this.#slots.fail(held, Errno.EIO);
      return;
    }
    const link = this.#link;
    if (link === undefined) return;
    const up = link.up && this.#state.mayAsk(held.region);
    const states = this.#state.statesOf(held.region);
    const end = held.firstPage + held.pageCount;
    let runStart = -1;
    let asked = false;
    for (let page = held.firstPage; page < end && held.waiting; page++) {
      const claimed = !held.isFilled(page) && this.#resolvePage(held, states, page, up);
      if (claimed && runStart < 0) runStart = page;
      const runEnd = claimed ? page + 1 : page;
      if (runStart < 0 || (claimed && runEnd < end && runEnd - runStart < PAGE_WIRE_MAX_PAGES)) continue;
      const flags = held.ahead ? this.#state.aheadFlags : PAGE_FLAG_URGENT | this.#state.multicastFlag;
      this.#ask(link, { region: held.region, firstPage: runStart, pageCount: runEnd - runStart }, flags);
      asked = true;
      runStart = -1;
    }
    if (held.ahead) return;
    if (asked) this.#counters.demandReads++;
    else if (!held.waiting) this.#counters.sharedReads++;
  }

  /** True when the page was claimed and has to be asked for. */
  #resolvePage(held: HeldRead, states: Uint8Array, page: number, up: boolean): boolean {
    for (;;) {
      switch (Atomics.load(states, page)) {
        case PageState.zero:
          this.#slots.fill(held, page, ZERO_PAGE, 0);
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
          this.#slots.fill(held, page, this.#queue.data, at);
          return false;
        }
        default:
          if (!up) return false;
          if (this.#state.claim(states, page)) return true;
      }
    }
  }

  #ask(link: PageLink, run: PageRun, flags: number): void {
    link.request([{ requestId: this.#requests.bulkAsked(run), flags, ...run }]);
  }

  #receive(which: LaneKind, frame: PageFrame, bytes: Buffer, offset: number): void {
    checkPageBitmap(bytes, offset, frame);
    if (isCompressed(frame)) {
      decompressPages(this.#unpacked, frame, bytes, offset);
      this.#counters.compressedPages += frame.dataPages;
      bytes = this.#unpacked;
      offset = 0;
    }
    this.drain();
    if (which === 'bulk') {
      this.#requests.endBulk(frame);
      const asker = this.#slots.askerOf(frame);
      const pages = this.#delivery.deliver(frame, bytes, offset);
      this.#accounts.fetched(asker, pages * PAGE_BYTES);
      this.#push.answered(frame.requestId);
    } else {
      const held = this.#requests.endDemandPart(frame);
      const pages = this.#delivery.deliver(frame, bytes, offset);
      this.#accounts.fetched(held.pid, pages * PAGE_BYTES);
      this.#slots.settle(held);
    }
    if (frame.type === PageFrameType.split) this.#multicast.promised(frame, bytes, offset);
  }

  #linkUp(demandFd: number): void {
    Atomics.store(this.#state.control, Control.laneFd, demandFd);
    this.#multicast.start();
    this.needs.ask();
    setImmediate(() => {
      if (!this.#attached && !this.frozen && this.#link?.up === true) this.#options.onConnected();
    });
  }

  #sourceFrozen(): void {
    Atomics.store(this.#state.control, Control.frozen, 1);
    if (!this.#counting) {
      this.#counting = true;
      this.#clearCounters();
      this.#options.onFrozen();
    }
    this.#startPrefetch();
    this.drain();
    this.#resolveAll();
    this.#startPush();
  }

  /** The source has its snapshot, as far as the present link knows. */
  get frozen(): boolean {
    return Atomics.load(this.#state.control, Control.frozen) !== 0;
  }

  #clearCounters(): void {
    this.#counters = noReads();
    this.#delivery.clearCounters();
    this.#multicast.clearCounters();
    this.#slots.latency.clear();
    this.#accounts.clear();
    this.#link?.clearCounters();
  }

  /** Once for each list of pages; what is lost with its link is fetched when it is asked for. */
  #startPrefetch(): void {
    const count = this.#attached ? this.#prefetch.length : LOADING_PAGES;
    const behind = this.#attached ? 0 : LOADING_PAGES_BEHIND;
    const pages = this.#prefetch.slice(0, count);
    this.#prefetch = this.#prefetch.slice(count);
    const all = pages.flatMap((page) => Array.from({ length: 1 + behind }, (_, index) => page + index));
    this.prefetch(PageRegion.ram, all);
  }

  /** Asks for pages that nobody waits for yet, in order of need. Nothing happens while there is no link. */
  prefetch(region: PageRegion, pages: readonly number[]): void {
    const link = this.#link;
    if (link?.up !== true) return;
    const states = this.#state.statesOf(region);
    const wanted = (page: number): boolean => page < states.length && this.#state.claimRemote(states, page);
    const runs = prefetchRuns(pages, { wanted, maxRunPages: PREFETCH_RUN_PAGES });
    link.request(
      runs.map((run) => {
        const asked = { region, ...run };
        return { requestId: this.#requests.bulkAsked(asked), flags: this.#state.aheadFlags, ...asked };
      }),
    );
  }

  /** Everything under way is lost: pages go back to remote, READs wait for the next link. */
  #linkDown(): void {
    this.#revokeLane();
    this.drain();
    this.#requests.abandonAll();
    this.#push.stop();
    this.needs.linkDown();
    this.#multicast.stop();
  }

  /** After this the read worker writes to no lane, and what it wrote before is in the ring. */
  #revokeLane(): void {
    this.#state.lockLane();
    Atomics.store(this.#state.control, Control.laneFd, -1);
    Atomics.store(this.#state.control, Control.frozen, 0);
    this.#state.unlockLane();
  }

  #linkFailed(reason: string): void {
    if (!this.#attached) {
      // nothing depends on this source yet: attach() tries it again
      this.#dropLink();
      return;
    }
    this.#lostReason = reason;
    Atomics.store(this.#state.control, Control.failed, 1);
    this.drain();
    for (const held of [...this.#slots.waiting]) this.#slots.fail(held, Errno.EIO);
    this.#options.onSourceLost(reason);
  }

  #resolveAll(): void {
    for (const held of [...this.#slots.waiting])
      if (held.waiting && held.pendingParts === 0) this.#resolve(held);
  }
}

function noReads() {
  return { demandReads: 0, sharedReads: 0, compressedPages: 0 };
}

function sameSource(a: SourceOptions, b: SourceOptions): boolean {
  const name = ({ sources, key, multicastAddress }: SourceOptions): string =>
    JSON.stringify([sources, key.toString('hex'), multicastAddress]);
  return name(a) === name(b);
}
