// Which pages clones ask for in their first moments: waking up is much the same at each fork of a VM, so the next fork's
// clones can have these pages on their way before they run (the original's observation of temporal locality, used ahead).
//
//   idle --first urgent read--> logging --after WAKE_UP_MS or when full--> done
//
// Only what guests waited for counts, in the order of the first asking.

import { PAGE_FLAG_URGENT, PageRegion, type PageFrame } from '@snowflock/protocol/pages';

/** A clone answers its caller well within this, also under emulation on a loaded host. */
const WAKE_UP_MS = 1500;
/** 6 MiB: what a clone may be sent unasked. */
export const WAKE_UP_PAGES_MAX = 1536;

export class WakeUpLog {
  readonly #pages = new Set<number>();
  #endsAtMs = 0;

  note(read: Readonly<PageFrame>): void {
    if ((read.flags & PAGE_FLAG_URGENT) === 0 || read.region !== PageRegion.ram) return;
    if (this.#pages.size >= WAKE_UP_PAGES_MAX) return;
    const now = performance.now();
    if (this.#endsAtMs === 0) this.#endsAtMs = now + WAKE_UP_MS;
    if (now > this.#endsAtMs) return;
    for (let page = read.firstPage; page < read.firstPage + read.pageCount; page++) this.#pages.add(page);
  }

  get pages(): number[] {
    return [...this.#pages];
  }
}
