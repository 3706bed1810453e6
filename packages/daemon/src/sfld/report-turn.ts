// When this host reports itself to sfmd: every few seconds, and at once when somebody waits for it.

import { setTimeout as sleep } from 'node:timers/promises';

/** sfmd may not answer; whoever waits for a report goes on then. */
const WAIT_MS = 6_000;

export class ReportTurn {
  #wake = new AbortController();
  #waiting: (() => void)[] = [];
  #asked: (() => void)[] = [];

  /** Resolves when a report that begins after this call is over, or takes too long. */
  async soon(): Promise<void> {
    const told = new Promise<void>((resolve) => this.#asked.push(resolve));
    this.#wake.abort();
    const late = new AbortController();
    await Promise.race([told, sleep(WAIT_MS, undefined, { ref: false, signal: late.signal })]);
    late.abort();
  }

  /** A report is over: with or without success. */
  done(): void {
    for (const resolve of this.#waiting.splice(0)) resolve();
  }

  /** Until the next report is due. */
  async pause(ms: number, signal: AbortSignal): Promise<void> {
    if (this.#asked.length === 0) {
      this.#wake = new AbortController();
      const woken = AbortSignal.any([signal, this.#wake.signal]);
      await sleep(ms, undefined, { signal: woken }).catch(() => undefined); // told to stop, or asked for one
    }
    this.#waiting = this.#asked;
    this.#asked = [];
  }
}
