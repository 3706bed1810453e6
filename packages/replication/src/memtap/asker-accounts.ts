// What came over the network on whose behalf, and how long who waited. A fetch is put down to the process whose fault asked for it, neighbours
// fetched along included; a page that several processes wait for is the first one's.

import { readFileSync } from 'node:fs';
import { LatencyHistogram, type LatencySummary } from '../latency-histogram.ts';

/** Threads and processes remembered: the QEMUs of one host's clones, with their threads. Beyond it, accounts go to process 0. */
const MAX_ENTRIES = 16_384;

interface Account {
  bytes: number;
  readonly waits: LatencyHistogram;
}

export interface AskerAccount {
  readonly bytes: number;
  /** Of READs for pages that were not here. */
  readonly waits: LatencySummary;
}

export class AskerAccounts {
  readonly #processOf = new Map<number, number>();
  readonly #accounts = new Map<number, Account>();
  /** The account asked for last: mostly the one asked for next. */
  #lastThread = -1;
  #last: Account = emptyAccount();

  /** `thread` as the FUSE request has it: the thread that faulted. */
  fetched(thread: number, bytes: number): void {
    this.#account(thread).bytes += bytes;
  }

  waited(thread: number, us: number): void {
    this.#account(thread).waits.record(us);
  }

  clear(): void {
    this.#accounts.clear();
    this.#lastThread = -1;
  }

  /** By pid. */
  summary(): Record<string, AskerAccount> {
    const entries = [...this.#accounts];
    return Object.fromEntries(
      entries.map(([pid, { bytes, waits }]) => [pid, { bytes, waits: waits.summary() }]),
    );
  }

  #account(thread: number): Account {
    if (thread !== this.#lastThread) {
      this.#last = this.#lookUp(thread);
      this.#lastThread = thread;
    }
    return this.#last;
  }

  #lookUp(thread: number): Account {
    const process = this.#process(thread);
    let account = this.#accounts.get(process);
    if (account === undefined) {
      account = emptyAccount();
      this.#accounts.set(process, account);
    }
    return account;
  }

  #process(thread: number): number {
    let process = this.#processOf.get(thread);
    if (process === undefined) {
      if (this.#processOf.size >= MAX_ENTRIES) return 0;
      process = processOf(thread);
      this.#processOf.set(thread, process);
    }
    return process;
  }
}

function emptyAccount(): Account {
  return { bytes: 0, waits: new LatencyHistogram() };
}

function processOf(thread: number): number {
  try {
    const status = readFileSync(`/proc/${thread}/status`, 'latin1');
    return Number(/^Tgid:\s*(\d+)/m.exec(status)?.[1] ?? thread);
  } catch {
    return thread; // it ended meanwhile; its account is its own
  }
}
