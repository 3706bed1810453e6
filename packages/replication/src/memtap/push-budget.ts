// How many pages may be fetched because others needed them: as many as have turned out to be of use here, twice over, and a few more.
//
// Whether a page in the page cache is used nobody tells the memtap. So of every HOLD_BACK blocks one is not fetched, but watched. When a READ
// comes for it, the blocks around it in the order of need are being used as well, and the budget grows. Clones that do something else never
// ask for what is watched, and the budget stays used up. Pure: no clock, no I/O.

/** Fetched on trust: 2 MiB of what clones on other hosts need now, 16 MiB of what an earlier fork's clones needed. */
const TRUST_PAGES = 512;
const EARLIER_TRUST_PAGES = 4096;
/** Pages that are decided on together: 64 KiB. */
export const BLOCK_PAGES = 16;
const HOLD_BACK = 16;
/** The place of the one that is held back: early, so that the answer comes before the trust is used up. */
const HELD_BACK_AT = 3;
/** Pages that may be fetched for each that would have been used. */
const REWARD = 2;

interface Block {
  readonly pages: number;
  missed: boolean;
}

export class PushBudget {
  readonly #watched = new Map<number, Block>();
  #blocks = 0;
  #trusted = TRUST_PAGES;
  #earned = 0;
  pushedPages = 0;
  heldBackPages = 0;
  /** Of those that were held back: in blocks that a READ came for. */
  missedPages = 0;

  /** Pages that may be fetched now. */
  get left(): number {
    return Math.max(0, this.#trusted + this.#earned - this.pushedPages);
  }

  /** What is offered was needed by clones of an earlier fork of the same VM. */
  trustEarlier(): void {
    this.#trusted = EARLIER_TRUST_PAGES;
  }

  /** An estimate: so many of the pages that were pushed have been used. */
  get usedPages(): number {
    return Math.round((this.pushedPages * this.missedPages) / Math.max(1, this.heldBackPages));
  }

  /** Decides on at most BLOCK_PAGES pages that could be fetched now. True: fetch them. */
  take(pages: readonly number[]): boolean {
    if (this.#blocks++ % HOLD_BACK !== HELD_BACK_AT) {
      this.pushedPages += pages.length;
      return true;
    }
    this.heldBackPages += pages.length;
    const block = { pages: pages.length, missed: false };
    for (const page of pages) this.#watched.set(page, block);
    return false;
  }

  /** A READ of RAM came for pages that were not here. Returns whether the budget has grown. */
  missed(firstPage: number, pageCount: number): boolean {
    if (this.#watched.size === 0) return false;
    let grown = false;
    for (let page = firstPage; page < firstPage + pageCount; page++) {
      const block = this.#watched.get(page);
      if (block === undefined) continue;
      this.#watched.delete(page);
      if (block.missed) continue;
      block.missed = true;
      this.missedPages += block.pages;
      this.#earned += block.pages * HOLD_BACK * REWARD;
      grown = true;
    }
    return grown;
  }
}
