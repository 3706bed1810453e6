// Which RAM pages the clones of a fork needed, in the order of the first asking, for those that come after them: hosts whose clones get there
// later, and the clones of the VM's next fork, whose memserver is given this log.
//
//   an earlier fork's log (open) ──▶ pages ◀── READs of all lanes (note)          pages ──▶ NEEDED frames to followers, as far as they want
//   of a relay (passOn): its memtap's list (hear) ──▶ pages
//
// What was fetched along is noted like what was asked for: nobody asked for it because it was there. What is fetched because it was told of is in
// the log already. There is one log for a fork: whatever a host below a relay needs, the relay's memtap asks for above, or has asked for before,
// so relays note nothing and pass on what they hear. Bounded: NEEDS_MAX pages.

import { PAGE_WIRE_MAX_PAGES, PageRegion, type PageFrame } from '@snowflock/protocol/pages';
import { decodeNeeds, encodeNeeds, NEEDS_MAX, partOf, type Needs } from '../needs.ts';

/** So long new needs are collected: one packet for each follower, not one for each fault. */
const TELL_DELAY_MS = 5;

/** A lane whose host wants to hear what others need. */
export interface Follower {
  /** Tells it of what is new in the log, as far as it wants. */
  tell(): void;
}

export class NeedLog {
  readonly #pages: number[] = [];
  readonly #known = new Set<number>();
  readonly #followers = new Set<Follower>();
  /** How many of the pages are an earlier fork's. */
  #earlier = 0;
  /** Otherwise nothing is noted, and nobody is told anything. */
  #open = false;
  /** Whether followers hear of what this fork's clones need. */
  #tellsOwn = false;
  #timer: NodeJS.Timeout | undefined;
  /** Of a relay: has it hear of more. */
  #ask: (() => void) | undefined;

  /** Begins, with the log of an earlier fork, as `encode` gave it. Before any READ. */
  open({ earlier, tellsOwn }: { readonly earlier: Buffer; readonly tellsOwn: boolean }): void {
    this.#open = true;
    this.#tellsOwn = tellsOwn;
    for (const page of decodeNeeds(earlier)) this.#add(page);
    this.#earlier = this.#pages.length;
  }

  /** Makes it a relay's: `ask` is called when a follower wants to hear of more than there is, and `hear` with what there is then. */
  passOn(ask: () => void): void {
    this.#ask = ask;
    this.#tellAll();
  }

  /** What the list goes on with. */
  hear({ pages, earlier }: Needs): void {
    for (const page of pages) this.#add(page);
    if (earlier) this.#earlier = this.#pages.length;
    this.#tellAll();
  }

  note({ region, firstPage, pageCount }: Readonly<PageFrame>): void {
    if (!this.#open || region !== PageRegion.ram) return;
    const before = this.#pages.length;
    for (let page = firstPage; page < firstPage + pageCount; page++) this.#add(page);
    if (this.#pages.length > before && this.#tellsOwn)
      this.#timer ??= setTimeout(() => this.#tellAll(), TELL_DELAY_MS);
  }

  follow(follower: Follower): void {
    this.#followers.add(follower);
    follower.tell();
  }

  leave(follower: Follower): void {
    this.#followers.delete(follower);
  }

  /** At most `limit` pages from the `from`th on, all of them an earlier fork's or none. Hosts hear of their own needs, too: others may be fed by them. */
  next(from: number, limit: number): Needs {
    const [pages, earlier] = [this.#pages, this.#earlier];
    if (from + limit > pages.length && pages.length < NEEDS_MAX) this.#ask?.();
    const all = this.#tellsOwn || this.#ask !== undefined;
    return all || from < earlier
      ? partOf({ pages, earlier }, { from, limit })
      : { pages: [], earlier: false };
  }

  /**
   * For the next fork. What was learnt goes first, or not at all if clones had to ask for more than half as many pages that were not in it: they did
   * something else, and the next ones may, too.
   */
  encode(): Buffer {
    const own = this.#pages.slice(this.#earlier);
    return encodeNeeds(own.length > this.#earlier / 2 ? own : this.#pages);
  }

  close(): void {
    clearTimeout(this.#timer);
  }

  #add(page: number): void {
    if (this.#pages.length >= NEEDS_MAX || this.#known.has(page)) return;
    this.#known.add(page);
    this.#pages.push(page);
  }

  #tellAll(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    for (const follower of this.#followers) follower.tell();
  }
}

/** Pages that follow each other, as runs that a frame can name. */
export function runsOf(pages: readonly number[]): { firstPage: number; pageCount: number }[] {
  const runs: { firstPage: number; pageCount: number }[] = [];
  for (const page of pages) {
    const last = runs.at(-1);
    if (last && page === last.firstPage + last.pageCount && last.pageCount < PAGE_WIRE_MAX_PAGES)
      last.pageCount++;
    else runs.push({ firstPage: page, pageCount: 1 });
  }
  return runs;
}
