// The sending half of mcdist: decides for each page that is asked for whether everyone gets it or only who asks, and in which order
// and how fast pages leave (docs/mcdist.md).
//
//   page:  never sent --asked--> queued --its turn--> sent
//                                   ^                   | asked again
//                                   |                   |-- within LOCKSTEP_MS --------> it is on its way: nothing
//                                   '-- the third time -'-- later, or it was missed ---> unicast (the end game)
//
// Invariants:
//   A page is in the queue at most once, and who asks for it meanwhile waits for the same turn.
//   An answer is complete when the last page in it that goes to everyone has left.
//   What a guest waits for leaves before what only might be needed, also when it was in the queue as such already.
//
// Pure: no clock, no socket, no timer. `T` is how the owner finds a page's data.

import { FlowControl } from './flow-control.ts';

/**
 * Two requests for a page within it are the same clones at the same point of the same program: the second crossed the answer to the
 * first. Longer than a round trip over a full queue. Who asks because it lost the page loses little: it is told at once, and asks again.
 */
export const LOCKSTEP_MS = 250;
/** How often a page that was sent to all is sent to single ones before it is sent to all again: many have lost it. */
const UNICASTS_BEFORE_MULTICAST = 2;
/** A receiver that has said nothing for so long is not there any more; they report once a second at least. */
export const MEMBER_TIMEOUT_MS = 3000;
/** For one receiver, TCP does better. */
const MIN_MEMBERS = 2;
/** Pages that wait for their turn: 16 MiB of held answers. Beyond it answers go by TCP, whose windows hold the askers back. */
export const QUEUE_MAX_PAGES = 4096;

/** What becomes of one page of a request. */
export type Verdict = 'multicast' | 'sent' | 'unicast';

/** An answer that waits until the pages that go to everyone have left. */
export interface Answer {
  /** Pages of it in the queue. */
  left: number;
  readonly complete: () => void;
}

interface Queued<T> {
  readonly key: number;
  readonly region: number;
  readonly page: number;
  readonly data: T;
  readonly waiting: Answer[];
  urgent: boolean;
  sent: boolean;
}

/** Taken from its begin without moving the rest each time. */
class Fifo<T> {
  readonly #items: T[] = [];
  #start = 0;

  push(item: T): void {
    this.#items.push(item);
  }

  get first(): T | undefined {
    return this.#items[this.#start];
  }

  shift(): void {
    this.#start++;
    if (this.#start < COMPACT_AT && this.#start < this.#items.length) return;
    this.#items.splice(0, this.#start);
    this.#start = 0;
  }
}

const COMPACT_AT = 1024;

export interface McdistSenderOptions<T> {
  /** Sends a page to all. Returns how many bytes that took. */
  readonly transmit: (region: number, page: number, data: T) => number;
}

export interface McdistCounters {
  /** Pages and bytes that went to everyone. */
  multicastPages: number;
  multicastBytes: number;
  /** Requests for pages that were on their way already. */
  lockstepPages: number;
  /** Pages that went to one receiver although they had been sent to all. */
  repairedPages: number;
}

export class McdistSender<T> {
  readonly counters: McdistCounters = {
    multicastPages: 0,
    multicastBytes: 0,
    lockstepPages: 0,
    repairedPages: 0,
  };
  readonly flow = new FlowControl();
  readonly #options: McdistSenderOptions<T>;
  readonly #members = new Map<number, number>();
  /** By region and page: when it was last sent, in whole milliseconds since the first request, plus one; 0: never. */
  #sentMs: readonly Uint32Array[] = [];
  /** By region and page: unicasts since then; bit 7: it was sent to all more than once. */
  #again: readonly Uint8Array[] = [];
  readonly #urgent = new Fifo<Queued<T>>();
  /** What became urgent meanwhile stands in both, and is skipped here once it was sent. */
  readonly #others = new Fifo<Queued<T>>();
  readonly #queued = new Map<number, Queued<T>>();
  #epochMs: number | undefined;

  constructor(options: McdistSenderOptions<T>) {
    this.#options = options;
  }

  /** There is a snapshot, with so many pages in each region; of a region with none nothing is sent to all. */
  open(pageCounts: readonly number[]): void {
    this.#sentMs = pageCounts.map((count) => new Uint32Array(count));
    this.#again = pageCounts.map((count) => new Uint8Array(count));
  }

  /** A receiver said how it does. Who does not hear the group is no member. */
  report(
    receiver: number,
    said: { readonly hears: boolean; readonly bytes: number; readonly intervalMs: number },
    nowMs: number,
  ): void {
    if (!said.hears) {
      this.forget(receiver);
      return;
    }
    this.#members.set(receiver, nowMs);
    this.flow.report(receiver, said, nowMs);
  }

  forget(receiver: number): void {
    this.#members.delete(receiver);
    this.flow.forget(receiver);
  }

  /** Receivers that hear the group. */
  memberCount(nowMs: number): number {
    for (const [receiver, atMs] of this.#members) if (nowMs - atMs > MEMBER_TIMEOUT_MS) this.forget(receiver);
    return this.#members.size;
  }

  /** Whether an answer for a region goes to everyone at all. */
  sendsToAll(region: number, nowMs: number): boolean {
    return (
      (this.#sentMs[region]?.length ?? 0) > 0 &&
      this.#queued.size < QUEUE_MAX_PAGES &&
      this.memberCount(nowMs) >= MIN_MEMBERS
    );
  }

  /**
   * One page that somebody asked for and that is not zero. 'multicast': it is in the queue, and `answer` waits for it. 'sent': the asker
   * will have it or has lost it. 'unicast': it has to be in the answer.
   */
  request(
    asked: {
      readonly region: number;
      readonly page: number;
      readonly urgent: boolean;
      readonly missed: boolean;
      readonly data: T;
    },
    answer: Answer,
    nowMs: number,
  ): Verdict {
    const { region, page, data, urgent } = asked;
    const key = keyOf(region, page);
    const queued = this.#queued.get(key);
    if (queued !== undefined) {
      queued.waiting.push(answer);
      answer.left++;
      this.counters.lockstepPages++;
      if (urgent && !queued.urgent) {
        queued.urgent = true;
        this.#urgent.push(queued);
      }
      return 'multicast';
    }
    const sent = this.#sentMs[region]?.[page] ?? 0;
    if (sent !== 0 && !this.#goesAgain(asked, sent, nowMs)) {
      if (this.#isOnItsWay(asked, sent, nowMs)) {
        this.counters.lockstepPages++;
        return 'sent';
      }
      this.#countAgain(region, page);
      this.counters.repairedPages++;
      return 'unicast';
    }
    const entry: Queued<T> = { key, region, page, data, waiting: [answer], urgent, sent: false };
    answer.left++;
    (urgent ? this.#urgent : this.#others).push(entry);
    this.#queued.set(key, entry);
    return 'multicast';
  }

  /** Sends what may leave now. Returns in how many milliseconds there is more to do, or -1 when the queue is empty. */
  pump(nowMs: number): number {
    for (;;) {
      const queue = this.#urgent.first === undefined ? this.#others : this.#urgent;
      const next = queue.first;
      if (next === undefined) {
        this.flow.idle(nowMs);
        return -1;
      }
      // a page counts with what the last one took: they are all alike
      if (!next.sent && !this.flow.take(this.#pageBytes, nowMs, next.urgent))
        return this.flow.waitMs(next.urgent);
      queue.shift();
      if (!next.sent) this.#send(next, nowMs);
    }
  }

  #pageBytes = 4096;

  #send(entry: Queued<T>, nowMs: number): void {
    const { key, region, page, data, waiting } = entry;
    entry.sent = true;
    this.#pageBytes = this.#options.transmit(region, page, data);
    this.counters.multicastPages++;
    this.counters.multicastBytes += this.#pageBytes;
    this.#queued.delete(key);
    const times = this.#sentMs[region];
    const again = this.#again[region];
    if (times === undefined || again === undefined) throw new Error(`there is no region ${region}`);
    again[page] = times[page] === 0 ? 0 : SENT_TWICE;
    times[page] = this.#sinceEpoch(nowMs);
    for (const answer of waiting) {
      answer.left--;
      if (answer.left === 0) answer.complete();
    }
  }

  #goesAgain(asked: { region: number; page: number; missed: boolean }, sent: number, nowMs: number): boolean {
    const { region, page } = asked;
    const count = (this.#again[region]?.[page] ?? 0) & ~SENT_TWICE;
    return count >= UNICASTS_BEFORE_MULTICAST && !this.#isOnItsWay(asked, sent, nowMs);
  }

  /** Of a page that was missed it is only true when it was sent again meanwhile. */
  #isOnItsWay(
    asked: { region: number; page: number; missed: boolean },
    sent: number,
    nowMs: number,
  ): boolean {
    const again = this.#again[asked.region]?.[asked.page] ?? 0;
    if (asked.missed && (again & SENT_TWICE) === 0) return false;
    const since = this.#sinceEpoch(nowMs) - sent;
    return since < (asked.missed ? MISSED_WAIT_MS : LOCKSTEP_MS);
  }

  #countAgain(region: number, page: number): void {
    const again = this.#again[region];
    if (again !== undefined) again[page] = (again[page] ?? 0) + 1;
  }

  #sinceEpoch(nowMs: number): number {
    this.#epochMs ??= nowMs;
    return Math.floor(nowMs - this.#epochMs) + 1;
  }
}

const SENT_TWICE = 0x80;
/** Who missed a page that was sent to all again just now may not have heard of that when it asked. */
const MISSED_WAIT_MS = 50;

function keyOf(region: number, page: number): number {
  return region * 2 ** 32 + page;
}
