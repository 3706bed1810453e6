// A histogram of latencies in microseconds with bounded relative error and no allocation after construction.
//
// Buckets as in HdrHistogram: values below 64 have a bucket each; every power of two above is cut into 32 equal parts, so
// a reported value is at most 1/32 (3 %) above the true one.

import { PAGE_WAIT_BOUNDS_US } from '@snowflock/protocol/pages';

const LINEAR = 64;
const PARTS = 32;
const PARTS_BITS = 5;
/** Values above 2^30 µs (18 minutes) land in the last bucket; every deadline here is far below. */
const TOP_BITS = 30;
const BUCKETS = LINEAR + (TOP_BITS - 6) * PARTS;

export interface LatencySummary {
  readonly count: number;
  readonly minUs: number;
  readonly medianUs: number;
  readonly p99Us: number;
  readonly maxUs: number;
  /** Of all values. */
  readonly sumUs: number;
  /** Values up to each of PAGE_WAIT_BOUNDS_US, give or take 3 % of the bound. */
  readonly buckets: number[];
}

export class LatencyHistogram {
  readonly #counts = new Float64Array(BUCKETS);
  #count = 0;
  #min = Infinity;
  #max = 0;
  #sum = 0;

  record(us: number): void {
    this.#count++;
    this.#sum += us;
    if (us < this.#min) this.#min = us;
    if (us > this.#max) this.#max = us;
    const bucket = bucketOf(us);
    this.#counts[bucket] = (this.#counts[bucket] ?? 0) + 1;
  }

  clear(): void {
    this.#counts.fill(0);
    this.#count = 0;
    this.#sum = 0;
    this.#min = Infinity;
    this.#max = 0;
  }

  summary(): LatencySummary {
    return {
      count: this.#count,
      minUs: this.#count === 0 ? 0 : round(this.#min),
      medianUs: this.#percentile(0.5),
      p99Us: this.#percentile(0.99),
      maxUs: round(this.#max),
      sumUs: round(this.#sum),
      buckets: this.#upTo(PAGE_WAIT_BOUNDS_US),
    };
  }

  /** `bounds` ascend. */
  #upTo(bounds: readonly number[]): number[] {
    let seen = 0;
    let bucket = 0;
    return bounds.map((bound) => {
      for (const last = bucketOf(bound); bucket <= last; bucket++) seen += this.#counts[bucket] ?? 0;
      return seen;
    });
  }

  #percentile(fraction: number): number {
    const rank = Math.ceil(this.#count * fraction);
    if (rank === 0) return 0;
    let seen = 0;
    for (let bucket = 0; bucket < BUCKETS; bucket++) {
      seen += this.#counts[bucket] ?? 0;
      if (seen >= rank) return round(Math.min(upperBound(bucket), this.#max));
    }
    return round(this.#max);
  }
}

function bucketOf(us: number): number {
  const value = Math.max(0, Math.min(us, 2 ** TOP_BITS - 1)) >>> 0;
  if (value < LINEAR) return value;
  const exponent = 31 - Math.clz32(value);
  const part = (value >>> (exponent - PARTS_BITS)) & (PARTS - 1);
  return LINEAR + (exponent - 6) * PARTS + part;
}

function upperBound(bucket: number): number {
  if (bucket < LINEAR) return bucket + 1;
  const exponent = 6 + Math.floor((bucket - LINEAR) / PARTS);
  const part = (bucket - LINEAR) % PARTS;
  return 2 ** exponent + (part + 1) * 2 ** (exponent - PARTS_BITS);
}

function round(us: number): number {
  return Math.round(us * 10) / 10;
}
