// How many bytes came over the network on whose behalf. A fetch is put down to the process whose fault asked for it, neighbours
// fetched along included; a page that several processes wait for is the first one's.

import { readFileSync } from 'node:fs';

/** Threads and processes remembered: the QEMUs of one host's clones, with their threads. Beyond it, accounts go to process 0. */
const MAX_ENTRIES = 16_384;

export class AskerAccounts {
  readonly #processOf = new Map<number, number>();
  readonly #bytes = new Map<number, number>();

  /** `thread` as the FUSE request has it: the thread that faulted. */
  add(thread: number, bytes: number): void {
    const process = this.#process(thread);
    this.#bytes.set(process, (this.#bytes.get(process) ?? 0) + bytes);
  }

  clear(): void {
    this.#bytes.clear();
  }

  /** By pid. */
  get bytes(): Record<string, number> {
    return Object.fromEntries(this.#bytes);
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

function processOf(thread: number): number {
  try {
    const status = readFileSync(`/proc/${thread}/status`, 'latin1');
    return Number(/^Tgid:\s*(\d+)/m.exec(status)?.[1] ?? thread);
  } catch {
    return thread; // it ended meanwhile; its account is its own
  }
}
