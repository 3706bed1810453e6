// Runs what a fork waits for once before there is one, while nobody waits: the first run of a function is its slowest.

import { PAGE_KEY_BYTES, PAGE_NONCE_BYTES, pageProof } from '@snowflock/protocol/pages';
import type { z } from 'zod';
import { PresenceMap } from './presence-map.ts';

/** As many as a VM of 512 MiB has. */
const REHEARSAL_PAGES = 1 << 17;
const ROUNDS = 3;

/** Some ms of CPU. Proves nothing, changes nothing. `request`: as it will come, and what checks it. */
export function rehearseFork(request: { readonly schema: z.ZodType; readonly like: object }): void {
  const line = JSON.stringify(request.like);
  const entries = new Uint32Array(2 * REHEARSAL_PAGES);
  for (let index = 1; index < entries.length; index += 2) entries[index] = index % 96 < 64 ? 0x80000000 : 0;
  for (let round = 0; round < ROUNDS; round++) {
    request.schema.safeParse(JSON.parse(line));
    const map = new PresenceMap(REHEARSAL_PAGES);
    map.setFromPagemap(0, entries);
    const read = PresenceMap.decode(map.encode(), { maxPages: REHEARSAL_PAGES });
    for (
      let page = read.next(0, false);
      page < REHEARSAL_PAGES;
      page = read.next(read.next(page, true), false)
    )
      continue;
  }
  const nonce = Buffer.alloc(PAGE_NONCE_BYTES);
  pageProof(Buffer.alloc(PAGE_KEY_BYTES), 'client', { server: nonce, client: nonce });
}
