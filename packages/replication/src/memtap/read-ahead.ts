// How many pages beyond the demanded one a miss asks for.
//
// A table of recent streams. A miss where a stream's last window ended doubles that stream's window, up to the maximum;
// a miss inside or close to a known stream halves its window; any other miss replaces the least recently used stream and gets the
// minimum. Pages that were fetched ahead never come back as READs (the page cache answers), so the next READ of a
// sequential reader is the one just behind its window. Pure: no clock, no I/O.

const STREAMS = 32;
/** A miss this many pages behind the end of a window still continues the stream: readers skip holes and zero pages. */
const SKIP_PAGES = 16;
/** A miss this close to a stream is spatial locality, and earns a small window. */
const NEAR_PAGES = 32;
const NEAR_WINDOW = 8;

export class ReadAhead {
  readonly #region = new Int8Array(STREAMS).fill(-1);
  readonly #start = new Float64Array(STREAMS);
  readonly #next = new Float64Array(STREAMS);
  readonly #window = new Int32Array(STREAMS);
  readonly #used = new Float64Array(STREAMS);
  #tick = 0;

  /** Takes note of a miss of `pageCount` pages at `firstPage`; returns how many pages behind them to fetch too. */
  onMiss(region: number, firstPage: number, pageCount: number, limits: { min: number; max: number }): number {
    this.#tick++;
    const stream = this.#find(region, firstPage);
    let window = limits.min;
    let target = stream;
    if (stream < 0) {
      target = this.#oldest();
    } else if (firstPage >= (this.#next[stream] ?? 0)) {
      window = Math.max(2 * (this.#window[stream] ?? 0), NEAR_WINDOW);
    } else {
      // inside the stream: pages of it were dropped, or this is no stream after all
      window = Math.max((this.#window[stream] ?? 0) >> 1, NEAR_WINDOW, limits.min);
    }
    window = Math.min(window, limits.max);
    this.#region[target] = region;
    this.#start[target] = firstPage;
    this.#next[target] = firstPage + pageCount + window;
    this.#window[target] = window;
    this.#used[target] = this.#tick;
    return window;
  }

  #find(region: number, page: number): number {
    let near = -1;
    for (let stream = 0; stream < STREAMS; stream++) {
      if (this.#region[stream] !== region) continue;
      const next = this.#next[stream] ?? 0;
      if (page >= next && page - next <= SKIP_PAGES) return stream;
      if (page >= (this.#start[stream] ?? 0) - NEAR_PAGES && page < next) near = stream;
    }
    return near;
  }

  #oldest(): number {
    let oldest = 0;
    for (let stream = 1; stream < STREAMS; stream++)
      if ((this.#used[stream] ?? 0) < (this.#used[oldest] ?? 0)) oldest = stream;
    return oldest;
  }
}
