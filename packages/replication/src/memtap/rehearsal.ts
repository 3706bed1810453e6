// A fork in small, before there is one: pages of the rehearsal region go the whole way from the memserver to a reader of
// this mount. What runs for the first time runs slowly (a cold remote fault takes ten times as long as a warm one), and the
// first faults of a clone are what its caller waits for.

import { PAGE_BYTES, REHEARSAL_PAGES } from '@snowflock/protocol/pages';
import { runBounded } from '../run-bounded.ts';

export const REHEARSAL_FILE = 'rehearsal';
/** Pages fetched ahead, in pairs that do not merge into longer runs: as the pages are that clones need first. */
const PREFETCHED_PAGES = REHEARSAL_PAGES / 2;
const PAIR_DISTANCE = 8;
/** Pages of the other half that are read one by one. */
const READS = 512;
const READ_TIMEOUT_MS = 3000;

export async function rehearse(options: {
  /** The mount's rehearsal file. */
  readonly path: string;
  readonly prefetch: (pages: readonly number[]) => void;
}): Promise<void> {
  const pages: number[] = [];
  for (let page = 0; page < PREFETCHED_PAGES; page += PAIR_DISTANCE) pages.push(page, page + 1);
  options.prefetch(pages);
  // By another process: one that waits for its own mount can't be killed, not even with SIGKILL.
  const what = [`if=${options.path}`, 'of=/dev/null', 'status=none'];
  const range = [`bs=${PAGE_BYTES}`, `skip=${PREFETCHED_PAGES}`, `count=${READS}`];
  await runBounded('dd', [...what, ...range], { timeoutMs: READ_TIMEOUT_MS });
}
