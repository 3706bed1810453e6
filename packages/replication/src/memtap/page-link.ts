// The memtap's link to whoever holds the snapshot: two lanes to one source at a time, mended when they break.
//
//   idle --start--> connecting --both lanes open--> up --lane closed, stalled--> connecting
//                       '--no data for sourceTimeoutMs, or the source says it lost the snapshot--> failed (final)
//
// While up, `onFrozen` says once that the source has its snapshot, which may be long after it could be reached.
//
// The demand lane carries requests that the read worker writes itself; this thread only reads it. The bulk lane carries
// what this thread asks for, and pings. So a guest's page never queues behind a prefetch.
//
// Owns the lanes and the timers. Invariant: `onDown` is called before any lane's descriptor number can be reused, and
// every `onUp` is followed by exactly one `onDown` or `onFailed`.

import { performance } from 'node:perf_hooks';
import {
  createPageFrame,
  PAGE_FRAME_HEADER_BYTES,
  PageErrorCode,
  type PageFrame,
  PageFrameType,
  SnowflockError,
  writePageFrame,
} from '@snowflock/protocol/pages';
import type { PageSource } from '../control/schemas.ts';
import { describe, Lane } from './lane.ts';
import { LinkPace } from './link-pace.ts';

const BACKOFF_FIRST_MS = 20;
const BACKOFF_MAX_MS = 1000;
const TICK_MS = 250;
const PING_INTERVAL_MS = 2000;
/** A source that owes us something and sends nothing for so long is given up, and the next one tried. */
const STALL_MAX_MS = 3000;
/** A relay that has no snapshot so long after the fork: its own host may never get one. */
const NO_SNAPSHOT_MAX_MS = 1000;
const UINT16_MAX = 0xffff;
const UINT32_MAX = 0xffffffff;

export interface PageLinkOptions {
  readonly sources: readonly PageSource[];
  readonly key: Buffer;
  readonly sourceTimeoutMs: number;
  readonly onUp: (demandFd: number) => void;
  /** After onUp, once for each. */
  readonly onFrozen: () => void;
  readonly onDown: (reason: string) => void;
  readonly onFailed: (reason: string) => void;
  /** The link turned out to be narrow, or no longer. */
  readonly onPace: (narrow: boolean) => void;
  readonly onData: (which: LaneKind, frame: PageFrame, bytes: Buffer, offset: number) => void;
  /** The source told of pages that others needed. */
  readonly onNeeded: (frame: Readonly<PageFrame>) => void;
  /** Called on every tick, before stalls are looked for. */
  readonly onTick: () => void;
  /** Requests under way on the demand lane. */
  readonly demandPending: () => number;
  /** Requests under way on the bulk lane. */
  readonly bulkPending: () => number;
}

export interface PageRequest {
  readonly requestId: number;
  readonly region: number;
  readonly firstPage: number;
  readonly pageCount: number;
  readonly flags: number;
}

export type LaneKind = 'demand' | 'bulk';

export class PageLink {
  readonly #options: PageLinkOptions;
  readonly #stallMs: number;
  readonly #frame = createPageFrame();
  readonly #pace = new LinkPace();
  #state: 'idle' | 'connecting' | 'up' | 'failed' = 'idle';
  #demand: Lane | undefined;
  #bulk: Lane | undefined;
  #attempt = 0;
  /** When data last came, or we began to look for it. */
  #lastDataMs = 0;
  #progressMs = { demand: 0, bulk: 0 };
  #pingSentMs = 0;
  #upSinceMs = 0;
  /** Since when a source that is up should have the snapshot. */
  #expectedMs = Infinity;
  #pingPending = false;
  #ticker: NodeJS.Timeout | undefined;
  #retry: NodeJS.Timeout | undefined;
  #lastReason = 'never reached';
  #closedLanesBytes = 0;
  sentBytes = 0;
  reconnects = 0;

  constructor(options: PageLinkOptions) {
    this.#options = options;
    this.#stallMs = Math.min(STALL_MAX_MS, options.sourceTimeoutMs / 3);
  }

  start(): void {
    this.#lastDataMs = performance.now();
    this.#state = 'connecting';
    this.#ticker = setInterval(() => this.#tick(), TICK_MS);
    void this.#connect();
  }

  get up(): boolean {
    return this.#state === 'up';
  }

  get receivedBytes(): number {
    return this.#closedLanesBytes + (this.#demand?.receivedBytes ?? 0) + (this.#bulk?.receivedBytes ?? 0);
  }

  /** Asks for pages on the bulk lane, with one write. Only while up. */
  request(reads: readonly PageRequest[]): void {
    const out = Buffer.allocUnsafe(reads.length * PAGE_FRAME_HEADER_BYTES);
    let at = 0;
    for (const { requestId, region, firstPage, pageCount, flags } of reads) {
      const frame = this.#frame;
      frame.type = PageFrameType.read;
      frame.requestId = requestId;
      frame.region = region;
      frame.firstPage = firstPage;
      frame.pageCount = pageCount;
      frame.flags = flags;
      frame.dataPages = 0;
      at = writePageFrame(out, at, frame);
    }
    this.#write(out);
  }

  /** Tells the source how multicast does here. */
  report(said: { readonly bytes: number; readonly intervalMs: number; readonly heardBytes: number }): void {
    if (this.#state !== 'up') return;
    const out = Buffer.allocUnsafe(PAGE_FRAME_HEADER_BYTES);
    const frame = { ...createPageFrame(), type: PageFrameType.report };
    frame.requestId = Math.min(said.bytes, UINT32_MAX);
    frame.firstPage = Math.min(Math.round(said.intervalMs * 1000), UINT32_MAX);
    frame.pageCount = Math.min(said.heardBytes, UINT16_MAX);
    writePageFrame(out, 0, frame);
    this.#write(out);
  }

  /** Asks to be told of so many more pages that others needed. */
  follow(pages: number): void {
    const out = Buffer.allocUnsafe(PAGE_FRAME_HEADER_BYTES);
    writePageFrame(out, 0, { ...createPageFrame(), type: PageFrameType.follow, firstPage: pages });
    this.#write(out);
  }

  /** There has been a fork: a source without its snapshot is given up for the next one, if there is another. */
  expectSnapshot(): void {
    this.#expectedMs = performance.now();
  }

  clearCounters(): void {
    this.#closedLanesBytes = 0;
    for (const lane of [this.#demand, this.#bulk]) if (lane) lane.receivedBytes = 0;
    this.sentBytes = 0;
    this.reconnects = 0;
  }

  /** Gives the present lanes up and connects again. */
  drop(reason: string): void {
    this.#demand?.destroy(reason);
    this.#bulk?.destroy(reason);
  }

  close(): void {
    this.#state = 'failed';
    clearInterval(this.#ticker);
    clearTimeout(this.#retry);
    this.drop('closed by us');
  }

  async #connect(): Promise<void> {
    const { sources, key } = this.#options;
    const source = sources[this.#attempt % sources.length];
    if (source === undefined) throw new Error('attach was checked to name a source');
    this.#attempt++;
    const lane = (which: LaneKind): Lane =>
      new Lane({
        source,
        key,
        pace: this.#pace,
        onPace: () => this.#options.onPace(this.#pace.narrow),
        onFrame: (from, frame, bytes, offset) => this.#receive({ which, from, source }, frame, bytes, offset),
        onClosing: () => this.#goDown(),
        onClosed: (closed, reason) => this.#laneClosed(closed, `source ${describe(source)}: ${reason}`),
      });
    const demand = lane('demand');
    const bulk = lane('bulk');
    this.#demand = demand;
    this.#bulk = bulk;
    // awaited together: when one fails the other's end is on its way too
    const outcomes = await Promise.allSettled([demand.opened, bulk.opened]);
    if (outcomes.some((outcome) => outcome.status === 'rejected') || this.#state !== 'connecting') return;
    if (this.#demand !== demand) return;
    const now = performance.now();
    this.#progressMs = { demand: now, bulk: now };
    this.#pingPending = false;
    this.#pingSentMs = now;
    this.#upSinceMs = now;
    this.#state = 'up';
    this.#options.onUp(demand.fd);
    this.#announceFrozen();
  }

  /** Both lanes have been told so. */
  get #frozen(): boolean {
    return this.#demand?.frozen === true && this.#bulk?.frozen === true;
  }

  #announceFrozen(): void {
    if (this.#state === 'up' && this.#frozen) this.#options.onFrozen();
  }

  #goDown(): void {
    if (this.#state !== 'up') return;
    this.#state = 'connecting';
    this.#options.onDown(this.#lastReason);
  }

  #laneClosed(lane: Lane, reason: string): void {
    if (lane !== this.#demand && lane !== this.#bulk) return;
    this.#lastReason = reason;
    const both = [this.#demand, this.#bulk];
    this.#closedLanesBytes = this.receivedBytes;
    this.#demand = undefined;
    this.#bulk = undefined;
    for (const other of both) if (other !== lane) other?.destroy(reason);
    if (this.#state === 'failed' || this.#giveUpIfLate()) return;
    this.reconnects++;
    const delay = Math.min(BACKOFF_MAX_MS, BACKOFF_FIRST_MS * 2 ** Math.min(10, this.#failuresSinceData()));
    this.#retry = setTimeout(() => void this.#connect(), delay);
  }

  #failures = 0;
  #failuresSinceData(): number {
    return this.#failures++;
  }

  #giveUpIfLate(): boolean {
    const { sourceTimeoutMs } = this.#options;
    const silentMs = performance.now() - this.#lastDataMs;
    if (silentMs < sourceTimeoutMs) return false;
    this.#fail(
      `no source could be reached for ${Math.round(sourceTimeoutMs)} ms; the last reason: ${this.#lastReason}`,
    );
    return true;
  }

  #fail(reason: string): void {
    if (this.#state === 'failed') return;
    this.#goDown();
    this.close();
    this.#options.onFailed(reason);
  }

  #receive(
    origin: { which: LaneKind; from: Lane; source: PageSource },
    frame: PageFrame,
    bytes: Buffer,
    offset: number,
  ): void {
    const now = performance.now();
    this.#progressMs[origin.which] = now;
    switch (frame.type) {
      case PageFrameType.data:
      case PageFrameType.split:
        this.#lastDataMs = now;
        this.#failures = 0;
        this.#options.onData(origin.which, frame, bytes, offset);
        return;
      case PageFrameType.frozen:
        if (origin.from.frozen) throw new SnowflockError('bad-request', 'it froze twice');
        origin.from.frozen = true;
        this.#announceFrozen();
        return;
      case PageFrameType.pong:
        this.#pingPending = false;
        if (this.#options.demandPending() + this.#options.bulkPending() === 0) this.#lastDataMs = now;
        return;
      case PageFrameType.needed:
        this.#options.onNeeded(frame);
        return;
      case PageFrameType.error:
        this.#refused(origin.source, frame.flags);
        return;
      default:
        throw new SnowflockError('bad-request', `it sent a frame of type ${frame.type}`);
    }
  }

  #refused(source: PageSource, code: number): void {
    const name = Object.entries(PageErrorCode).find(([, value]) => value === code)?.[0] ?? 'unknown';
    const reason = `source ${describe(source)} refused a read: ${name}`;
    // a source that lost the snapshot does not find it again: with no other source, waiting is of no use
    if (code === PageErrorCode.sourceLost && this.#options.sources.length === 1) this.#fail(reason);
    else throw new SnowflockError('unavailable', reason);
  }

  #tick(): void {
    this.#options.onTick();
    const now = performance.now();
    if (this.#state === 'connecting') {
      this.#giveUpIfLate();
      return;
    }
    if (this.#state !== 'up') return;
    if (this.#options.sources.length > 1 && !this.#frozen) {
      const upMs = now - Math.max(this.#upSinceMs, this.#expectedMs);
      if (upMs > NO_SNAPSHOT_MAX_MS) {
        this.drop(`it had no snapshot ${NO_SNAPSHOT_MAX_MS} ms after the fork`);
        return;
      }
    }
    const { demandPending, bulkPending } = this.#options;
    const demandIdle = demandPending() === 0;
    const bulkIdle = bulkPending() === 0 && !this.#pingPending;
    if (demandIdle) this.#progressMs.demand = now;
    if (bulkIdle) this.#progressMs.bulk = now;
    const stalled = now - Math.min(this.#progressMs.demand, this.#progressMs.bulk) > this.#stallMs;
    if (stalled) {
      this.drop(`nothing came for ${Math.round(this.#stallMs)} ms`);
      return;
    }
    if (this.#pingPending || now - this.#pingSentMs < PING_INTERVAL_MS) return;
    this.#pingPending = true;
    this.#pingSentMs = now;
    const out = Buffer.allocUnsafe(PAGE_FRAME_HEADER_BYTES);
    writePageFrame(out, 0, { ...createPageFrame(), type: PageFrameType.ping });
    this.#write(out);
  }

  #write(out: Buffer): void {
    this.sentBytes += out.length;
    this.#bulk?.write(out);
  }
}
