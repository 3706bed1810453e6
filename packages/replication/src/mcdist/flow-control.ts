// How fast a memserver sends to its group: as fast as its receivers, on the weighted average, say that they receive.
//
//   starting: each round half as fast again --two rounds without growth--> cruising: 1.25, 0.75, 1, 1, 1, 1, 1, 1 times the estimate
//
// A receiver's weight is its own rate, so that the average is sum(r^2) / sum(r): one that is slow, or gets nothing any more, hardly
// changes it. It loses what it cannot take and fetches that over TCP, which has its own flow control.
//
// The estimate is the highest average of the last rounds in most of which the sender had more to send than it was let send, put down to
// that part of the round; rounds with little to send say nothing about the network. That loss by chance does not lower it, up to the fifth that a round at 1.25 makes up for, and
// that a queue that one round has filled is emptied by the next, is the idea of BBR (Cardwell et al., 2016).
//
// Pure: times are given, in milliseconds of any clock that does not go back.

export const ROUND_MS = 100;
/** 100 Mbit/s: no network with multicast is slower, and a faster one is found out in some rounds. */
const FIRST_RATE = 12.5e6;
/** Below it nothing gets better by going slower: 8 Mbit/s. */
const MIN_RATE = 1e6;
/** 10 Gbit/s: beyond it this process is the limit. */
const MAX_RATE = 1.25e9;
/** Part of a round in which something has to have waited for its turn. */
const LIMITED_SHARE = 0.5;
const STARTING_GAIN = 1.5;
const CRUISING_GAINS = [1.25, 0.75, 1, 1, 1, 1, 1, 1] as const;
/** Growth in a round that counts as growth, and rounds without it after which the network's rate is known. */
const GROWTH = 1.25;
const ROUNDS_WITHOUT_GROWTH = 2;
/** Rounds that the estimate looks back on: longer than a turn of the gains. */
const WINDOW_ROUNDS = 10;
/** A receiver that reports nothing for so long is not among those that are averaged. */
const REPORT_VALID_MS = 3 * ROUND_MS;
/**
 * What may leave at once after a pause: 5 ms' worth, and no less than 64 KiB, which fits the smallest socket buffer that Linux gives by
 * default (208 KiB, in which a datagram of 1400 bytes takes 2304).
 */
const BURST_MS = 5;
const BURST_MIN_BYTES = 65_536;
/** How far what guests wait for may be ahead of the rate: what is only fetched ahead waits for it to be made good. */
const URGENT_DEBT_BYTES = 32_768;

interface Reported {
  readonly rate: number;
  readonly atMs: number;
}

export class FlowControl {
  readonly #reports = new Map<number, Reported>();
  readonly #samples: number[] = [];
  #estimate = 0;
  #starting = true;
  #withoutGrowth = 0;
  #gainIndex = 0;
  #rate = FIRST_RATE;
  #tokens = BURST_MIN_BYTES;
  #filledMs = 0;
  #roundEndsMs = 0;
  /** Since when something waits to be sent, or NaN; and how long that was so before, in this round. */
  #waitsSinceMs = Number.NaN;
  #waitedMs = 0;
  #roundBeganMs = 0;

  /** Bytes a second. */
  get rate(): number {
    return this.#rate;
  }

  /** What a receiver got in `intervalMs` on its own clock. */
  report(
    receiver: number,
    got: { readonly bytes: number; readonly intervalMs: number },
    nowMs: number,
  ): void {
    if (got.intervalMs <= 0) return;
    this.#reports.set(receiver, { rate: (got.bytes * 1000) / got.intervalMs, atMs: nowMs });
  }

  forget(receiver: number): void {
    this.#reports.delete(receiver);
  }

  /** Whether `bytes` may leave now; they count as sent if so. What a guest waits for (`urgent`) need not wait for a burst that has left. */
  take(bytes: number, nowMs: number, urgent = false): boolean {
    this.#fill(nowMs);
    if (this.#tokens <= (urgent ? -URGENT_DEBT_BYTES : 0)) {
      if (Number.isNaN(this.#waitsSinceMs)) this.#waitsSinceMs = nowMs;
      return false;
    }
    // may go below zero: a datagram leaves whole
    this.#tokens -= bytes;
    return true;
  }

  /** Nothing waits to be sent any more. */
  idle(nowMs: number): void {
    if (!Number.isNaN(this.#waitsSinceMs)) this.#waitedMs += nowMs - this.#waitsSinceMs;
    this.#waitsSinceMs = Number.NaN;
  }

  /** How long until something may leave again. */
  waitMs(urgent = false): number {
    const missing = 1 - this.#tokens - (urgent ? URGENT_DEBT_BYTES : 0);
    return missing <= 0 ? 0 : (missing * 1000) / this.#rate;
  }

  #fill(nowMs: number): void {
    if (nowMs >= this.#roundEndsMs) this.#endRound(nowMs);
    const burst = Math.max(BURST_MIN_BYTES, (this.#rate * BURST_MS) / 1000);
    const came = ((nowMs - this.#filledMs) * this.#rate) / 1000;
    this.#tokens = Math.min(burst, this.#tokens + came);
    this.#filledMs = nowMs;
  }

  #endRound(nowMs: number): void {
    const waits = !Number.isNaN(this.#waitsSinceMs);
    this.idle(nowMs);
    if (waits) this.#waitsSinceMs = nowMs;
    const share = this.#waitedMs / Math.max(1, nowMs - this.#roundBeganMs);
    this.#waitedMs = 0;
    this.#roundBeganMs = nowMs;
    const limited = share >= LIMITED_SHARE;
    const average = this.#average(nowMs) / (limited ? share : 1);
    if (average > 0 && (limited || average > this.#estimate)) this.#sample(average, limited);
    this.#roundEndsMs = nowMs + ROUND_MS;
    if (this.#estimate === 0) return;
    const gain = this.#starting ? STARTING_GAIN : (CRUISING_GAINS[this.#gainIndex] ?? 1);
    this.#rate = Math.min(MAX_RATE, Math.max(MIN_RATE, this.#estimate * gain));
    // what is known by reports of slow moments must not start slower than a network that nobody has tried
    if (this.#starting) this.#rate = Math.max(this.#rate, FIRST_RATE);
  }

  #sample(average: number, limited: boolean): void {
    const grew = average >= this.#estimate * GROWTH;
    this.#samples.push(average);
    if (this.#samples.length > WINDOW_ROUNDS) this.#samples.shift();
    this.#estimate = Math.max(...this.#samples);
    this.#withoutGrowth = grew || !limited ? 0 : this.#withoutGrowth + 1;
    if (this.#withoutGrowth >= ROUNDS_WITHOUT_GROWTH) this.#starting = false;
    if (!this.#starting && limited) this.#gainIndex = (this.#gainIndex + 1) % CRUISING_GAINS.length;
  }

  #average(nowMs: number): number {
    let sum = 0;
    let squares = 0;
    for (const [receiver, { rate, atMs }] of this.#reports) {
      if (nowMs - atMs > REPORT_VALID_MS) {
        this.#reports.delete(receiver);
        continue;
      }
      sum += rate;
      squares += rate * rate;
    }
    return sum === 0 ? 0 : squares / sum;
  }
}
