// What the source has told of the list of needs (needs.ts): for this host's own push, and for the relay that passes it on to other hosts.
//
//   want, next ──FOLLOW──▶ source ──NEEDED──▶ pages ──▶ push.ts
//                                               └─────▶ relay: memserver/need-feed.ts
//
// Every source tells the same list from its begin, so what one told is skipped when the next one, or the same one after a break, tells it again.
// Invariant: nothing is told that was not asked for, so the list is bounded by NEEDS_MAX.

import { setTimeout as sleep } from 'node:timers/promises';
import { PAGE_FLAG_EARLIER, PageRegion, type PageFrame, SnowflockError } from '@snowflock/protocol/pages';
import { NEEDS_MAX, partOf, type Needs } from '../needs.ts';
import type { PageLink } from './page-link.ts';

/** What the relay gets at a time, and how long it waits for something: less than its deadline. */
const PASSED_ON_PAGES = 1024;
const NEXT_TIMEOUT_MS = 5_000;

export class HeardNeeds {
  readonly #pages: number[] = [];
  /** How many of them are an earlier fork's. */
  #earlier = 0;
  /** How much of the list somebody here wants. */
  #wanted = 0;
  /** By the present link: asked for, and told. */
  #asked = 0;
  #told = 0;
  #news = Promise.withResolvers<void>();
  readonly #link: () => PageLink | undefined;
  readonly #pageCount: number;

  constructor(options: { readonly link: () => PageLink | undefined; readonly pageCount: number }) {
    this.#link = options.link;
    this.#pageCount = options.pageCount;
  }

  get length(): number {
    return this.#pages.length;
  }

  /** How long the list will be when all that was asked for is told. */
  get wanted(): number {
    return this.#wanted;
  }

  at(index: number): number | undefined {
    return this.#pages[index];
  }

  /** Asks for the first `length` pages of the list: now, or as soon as there is a link. */
  want(length: number): void {
    this.#wanted = Math.max(this.#wanted, Math.min(length, NEEDS_MAX));
    this.ask();
  }

  /** The link may be up. */
  ask(): void {
    const link = this.#link();
    if (link?.up !== true || this.#asked >= this.#wanted) return;
    link.follow(this.#wanted - this.#asked);
    this.#asked = this.#wanted;
  }

  /** The link is down: the next source tells everything from the begin. */
  linkDown(): void {
    this.#asked = 0;
    this.#told = 0;
  }

  /** Throws 'bad-request' when these are more than was asked for, or no pages of the RAM. */
  told({ flags, region, firstPage, pageCount }: Readonly<PageFrame>): void {
    if (
      this.#told + pageCount > this.#asked ||
      region !== PageRegion.ram ||
      firstPage + pageCount > this.#pageCount
    )
      throw new SnowflockError('bad-request', 'it told of pages that it was not asked about');
    for (let page = firstPage; page < firstPage + pageCount; page++) {
      if (this.#told++ < this.#pages.length) continue;
      if ((flags & PAGE_FLAG_EARLIER) !== 0 && this.#earlier === this.#pages.length) this.#earlier++;
      this.#pages.push(page);
    }
    this.#news.resolve();
    this.#news = Promise.withResolvers();
  }

  /** For the relay: some pages from the `from`th on. Waits until there are any, at most NEXT_TIMEOUT_MS: then there are none. */
  async next(from: number): Promise<Needs> {
    this.want(from + PASSED_ON_PAGES);
    if (this.#pages.length <= from)
      await Promise.race([this.#news.promise, sleep(NEXT_TIMEOUT_MS, undefined, { ref: false })]);
    return partOf({ pages: this.#pages, earlier: this.#earlier }, { from, limit: PASSED_ON_PAGES });
  }
}
