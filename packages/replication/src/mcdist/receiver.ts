// The receiving half of mcdist: opens datagrams, puts pages together, and watches over those that were promised (docs/mcdist.md).
//
//   promised (SPLIT said: sent to all) --it comes--> here
//        '-- it was overtaken, REORDER_MS later -----------> missed: asked for again, over TCP
//        '-- nothing came at all for `patience` -----------> missed
//
// Patience doubles when it was too short (the page came after all) and shrinks slowly while it was enough.
//
// Invariants:
//   A datagram counts once: numbers seen, or too old to know, are dropped before anything is decrypted.
//   Bounded: pages half here (PARTIALS), promises (whoever makes more than the memtap has reads for is not believed), state per page none.
//
// Pure: no clock, no socket, no timer. What has become of a page is the owner's business.

import {
  createMcdistHeader,
  type McdistHeader,
  McdistOpener,
  McdistType,
  PAGE_BYTES,
  pieceBytes,
} from '@snowflock/protocol/pages';

/** Numbers that may come out of order and are still known as new or seen. */
const WINDOW = 8192;
/** Pages of which some pieces are here: those of the packets that can be in the socket's buffer at once, and some more. */
const PARTIALS = 256;
/** Datagrams of one network seldom pass each other by more. */
export const REORDER_MS = 3;
const PATIENCE_MIN_MS = 15;
export const PATIENCE_MAX_MS = 480;
/**
 * When so much is lost the group is not worth waiting for, and the memserver is asked for unicast for a while. It goes by the numbers of
 * datagrams: of the pages that this host has to ask for, most are those it lost, however few it loses.
 */
const DISTRUST_SHARE = 0.5;
const DISTRUST_MS = 2000;
/** The weight of one datagram in that share, and the gap that counts at most: a process that did not run for a moment is no network. */
const SHARE_WEIGHT = 1 / 1024;
const MAX_GAP = 1024;
/** So little loss already makes fragments of IP worse than more datagrams. */
const LOSSY_SHARE = 1 / 128;
/** Promises missed with nothing at all in between that say the same. */
const MISSED_IN_SILENCE = 16;

/** A page that is here completely. Valid until the next datagram. */
export interface ReceivedPage {
  readonly region: number;
  readonly page: number;
  readonly data: Buffer;
}

/** A page that was promised and did not come. */
export interface MissedPage {
  readonly region: number;
  readonly page: number;
}

interface Promised extends MissedPage {
  dueMs: number;
  /** What will have passed it when it is lost. */
  readonly number: number;
  overtaken: boolean;
}

interface Partial {
  region: number;
  page: number;
  pieces: number;
  mask: number;
  /** 0: free. When it was begun, counted in partials. */
  age: number;
  readonly data: Buffer;
}

export interface ReceiverCounters {
  datagrams: number;
  bytes: number;
  /** Seen before or too old, and what the fork's memserver did not send. */
  replayed: number;
  foreign: number;
  promisedPages: number;
  missedPages: number;
}

export class McdistReceiver {
  readonly counters: ReceiverCounters = {
    datagrams: 0,
    bytes: 0,
    replayed: 0,
    foreign: 0,
    promisedPages: 0,
    missedPages: 0,
  };
  readonly #opener: McdistOpener;
  readonly #header = createMcdistHeader();
  readonly #seen = new Uint8Array(WINDOW);
  #highest = 0;
  readonly #partials: Partial[] = [];
  #ages = 0;
  readonly #promised = new Map<number, Promised>();
  /** Missed a moment ago: if one comes after all, patience was too short. */
  readonly #givenUp = new Set<number>();
  #patienceMs = PATIENCE_MIN_MS;
  #lostShare = 0;
  #lossy = false;
  #missedInSilence = 0;
  #distrustsUntilMs = -Infinity;
  #fresh = true;
  /** When a datagram last came. */
  #lastMs = -Infinity;

  constructor(options: { readonly key: Buffer }) {
    this.#opener = new McdistOpener(options.key);
  }

  /** Something of the fork's memserver has come. */
  get hears(): boolean {
    return this.#highest > 0;
  }

  get patienceMs(): number {
    return this.#patienceMs;
  }

  /** Whether datagrams were lost, of late or before: more than a few. */
  get lossy(): boolean {
    return this.#lossy;
  }

  /** Whether to ask for answers by multicast. */
  trusts(nowMs: number): boolean {
    return this.hears && nowMs >= this.#distrustsUntilMs;
  }

  /** Takes a datagram. Returns the page that it completes; `wanted` says whether there is any use for one. */
  datagram(
    bytes: Buffer,
    nowMs: number,
    wanted: (region: number, page: number) => boolean,
  ): ReceivedPage | undefined {
    const header = this.#header;
    this.#fresh = true;
    const body = this.#opener.open(bytes, header, this.#isFresh);
    if (body === undefined) {
      if (this.#fresh) this.counters.foreign++;
      else this.counters.replayed++;
      return undefined;
    }
    this.counters.datagrams++;
    this.counters.bytes += bytes.length;
    this.#lastMs = nowMs;
    this.#note(header.number, nowMs);
    if (header.type !== McdistType.piece) return undefined;
    const { region, page, pieces } = header;
    if (!wanted(region, page)) {
      this.#came(region, page);
      return undefined;
    }
    const data = pieces === 1 ? body : this.#join(header, body);
    if (data === undefined) return undefined;
    this.#came(region, page);
    return { region, page, data };
  }

  /** The memserver says that it sent a page to all, and it is not here. `number`: of the last datagram so far, the low 32 bits. */
  promise(region: number, page: number, number: number, nowMs: number): void {
    this.counters.promisedPages++;
    const overtaken = this.#isPast(number);
    const dueMs = nowMs + (overtaken ? REORDER_MS : this.#patienceMs);
    this.#promised.set(keyOf(region, page), { region, page, number, overtaken, dueMs });
  }

  isPromised(region: number, page: number): boolean {
    return this.#promised.has(keyOf(region, page));
  }

  /** When the next promise runs out; Infinity: there is none. */
  get nextDueMs(): number {
    let next = Infinity;
    for (const promised of this.#promised.values()) next = Math.min(next, this.#dueMs(promised));
    return next;
  }

  get promisedCount(): number {
    return this.#promised.size;
  }

  /** The pages that have to be asked for again, in ascending order. */
  missed(nowMs: number): MissedPage[] {
    const missed: MissedPage[] = [];
    for (const [key, promised] of this.#promised) {
      if (this.#dueMs(promised) > nowMs) continue;
      this.#promised.delete(key);
      missed.push(promised);
      this.counters.missedPages++;
      this.#missedInSilence++;
      if (this.#missedInSilence >= MISSED_IN_SILENCE) this.#distrust(nowMs);
      if (this.#givenUp.size >= WINDOW) this.#givenUp.clear();
      this.#givenUp.add(key);
    }
    return missed.sort((a, b) => a.region - b.region || a.page - b.page);
  }

  /** The link to the memserver is gone. Returns what was promised. */
  abandon(): MissedPage[] {
    const promised = [...this.#promised.values()];
    this.#promised.clear();
    this.#givenUp.clear();
    return promised;
  }

  /** As long as something comes, a promise that nothing has passed yet may be behind it: this process may be late itself. */
  #dueMs({ dueMs, overtaken }: Promised): number {
    return overtaken ? dueMs : Math.max(dueMs, this.#lastMs + this.#patienceMs);
  }

  readonly #isFresh = ({ number }: McdistHeader): boolean => {
    this.#fresh =
      number > this.#highest || (number > this.#highest - WINDOW && this.#seen[number % WINDOW] === 0);
    return this.#fresh;
  };

  #note(number: number, nowMs: number): void {
    this.#missedInSilence = 0;
    this.#lostShare *= 1 - SHARE_WEIGHT;
    if (number > this.#highest) {
      const lost = Math.min(MAX_GAP, number - this.#highest - 1);
      if (this.#highest > 0) this.#lostShare = 1 - (1 - this.#lostShare) * (1 - SHARE_WEIGHT) ** lost;
      if (this.#lostShare > LOSSY_SHARE) this.#lossy = true;
      if (this.#lostShare > DISTRUST_SHARE) this.#distrust(nowMs);
      const from = Math.max(this.#highest + 1, number - WINDOW + 1);
      for (let between = from; between < number; between++) this.#seen[between % WINDOW] = 0;
      this.#highest = number;
      this.#overtake(nowMs);
    }
    this.#seen[number % WINDOW] = 1;
  }

  /** Promises that something later has passed are not waited for much longer. */
  #overtake(nowMs: number): void {
    for (const promised of this.#promised.values()) {
      if (promised.overtaken || !this.#isPast(promised.number)) continue;
      promised.overtaken = true;
      promised.dueMs = Math.min(promised.dueMs, nowMs + REORDER_MS);
    }
  }

  /** Whether a datagram of this number, or a later one, has come. */
  #isPast(number: number): boolean {
    return (((this.#highest % 2 ** 32) - number) | 0) >= 0;
  }

  #came(region: number, page: number): void {
    const key = keyOf(region, page);
    if (this.#promised.delete(key)) {
      this.#patienceMs = Math.max(PATIENCE_MIN_MS, this.#patienceMs * (1 - 1 / 64));
    } else if (this.#givenUp.delete(key)) {
      this.#patienceMs = Math.min(PATIENCE_MAX_MS, this.#patienceMs * 2);
    }
  }

  #distrust(nowMs: number): void {
    this.#distrustsUntilMs = nowMs + DISTRUST_MS;
    this.#lostShare = 0;
    this.#missedInSilence = 0;
  }

  /** Adds a piece; returns the page when it was the last one missing. */
  #join(header: McdistHeader, body: Buffer): Buffer | undefined {
    const { region, page, pieces, piece } = header;
    const partial = this.#partialOf(region, page, pieces);
    body.copy(partial.data, piece * pieceBytes(pieces));
    partial.mask |= 1 << piece;
    if (partial.mask !== 2 ** pieces - 1) return undefined;
    partial.age = 0;
    partial.page = -1;
    return partial.data;
  }

  #partialOf(region: number, page: number, pieces: number): Partial {
    let oldest: Partial | undefined;
    for (const partial of this.#partials) {
      if (partial.page === page && partial.region === region && partial.pieces === pieces) return partial;
      if (oldest === undefined || partial.age < oldest.age) oldest = partial;
    }
    if (oldest === undefined || (oldest.age !== 0 && this.#partials.length < PARTIALS)) {
      oldest = { region, page, pieces, mask: 0, age: 0, data: Buffer.allocUnsafeSlow(PAGE_BYTES) };
      this.#partials.push(oldest);
    }
    this.#ages++;
    return Object.assign(oldest, { region, page, pieces, mask: 0, age: this.#ages });
  }
}

function keyOf(region: number, page: number): number {
  return region * 2 ** 32 + page;
}
