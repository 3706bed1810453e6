// Which RAM pages the clones of a fork needed, in the order of the first asking, for those that come after them: hosts whose clones get there
// later, and the clones of the VM's next fork, whose memserver is given this log.
//
//   an earlier fork's log (open) ──▶ pages ◀── READs of all lanes (note)          pages ──▶ NEEDED frames to followers, as far as they want
//
// What was fetched along is noted like what was asked for: nobody asked for it because it was there. Bounded: NEEDS_MAX pages.

import { PAGE_WIRE_MAX_PAGES, PageRegion, type PageFrame } from '@snowflock/protocol/pages';

/** 256 MiB: what needs more is past its begin. */
export const NEEDS_MAX = 65_536;
/** So long new needs are collected: one packet for each follower, not one for each fault. */
const TELL_DELAY_MS = 5;
const ENTRY_BYTES = 4;

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

  /** Begins, with the log of an earlier fork, as `encode` gave it. Before any READ. */
  open({ earlier, tellsOwn }: { readonly earlier: Buffer; readonly tellsOwn: boolean }): void {
    this.#open = true;
    this.#tellsOwn = tellsOwn;
    for (let at = 0; at + ENTRY_BYTES <= earlier.length; at += ENTRY_BYTES)
      this.#add(earlier.readUInt32LE(at));
    this.#earlier = this.#pages.length;
  }

  note({ region, firstPage, pageCount }: Readonly<PageFrame>): void {
    if (!this.#open || region !== PageRegion.ram) return;
    const before = this.#pages.length;
    for (let page = firstPage; page < firstPage + pageCount; page++) this.#add(page);
    if (this.#pages.length > before && this.#end > before)
      this.#timer ??= setTimeout(() => this.#tellAll(), TELL_DELAY_MS);
  }

  follow(follower: Follower): void {
    this.#followers.add(follower);
    // with the second one, what the first needed is news
    if (this.#followers.size === 2) this.#tellAll();
    else follower.tell();
  }

  leave(follower: Follower): void {
    this.#followers.delete(follower);
  }

  /** At most `limit` pages from the `from`th on, all of them an earlier fork's or none. */
  next(from: number, limit: number): { readonly pages: readonly number[]; readonly earlier: boolean } {
    const earlier = from < this.#earlier;
    const end = earlier ? this.#earlier : this.#end;
    return { pages: this.#pages.slice(from, Math.min(from + limit, end)), earlier };
  }

  /**
   * For the next fork: u32 little-endian for each page. What was learnt goes first, or not at all if clones had to ask for more than half as many
   * pages that were not in it: they did something else, and the next ones may, too.
   */
  encode(): Buffer {
    const own = this.#pages.slice(this.#earlier);
    const pages = own.length > this.#earlier / 2 ? own : this.#pages;
    const bytes = Buffer.allocUnsafe(pages.length * ENTRY_BYTES);
    pages.forEach((page, index) => bytes.writeUInt32LE(page, index * ENTRY_BYTES));
    return bytes;
  }

  /** Of what followers may hear of. To a single one what this fork's clones need is no news: it asked for it itself. */
  get #end(): number {
    return this.#tellsOwn && this.#followers.size > 1 ? this.#pages.length : this.#earlier;
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
