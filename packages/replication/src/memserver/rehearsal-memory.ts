// What the rehearsal region is served from: this process's own program text, read the way that frozen memory is.

import { readFileSync } from 'node:fs';
import { PAGE_BYTES, REHEARSAL_PAGES, SnowflockError } from '@snowflock/protocol/pages';
import { FrozenMemory } from './frozen-memory.ts';

const LENGTH_BYTES = REHEARSAL_PAGES * PAGE_BYTES;

/** Nothing secret is in it: it is what everybody can read in the executable. Throws 'internal' when there is no such text. */
export function openRehearsalMemory(): FrozenMemory {
  for (const line of readFileSync('/proc/self/maps', 'latin1').split('\n')) {
    // proc(5): start-end perms offset device inode path
    const [, start = '', end = ''] = /^([0-9a-f]+)-([0-9a-f]+) r-xp \S+ \S+ [1-9]/.exec(line) ?? [];
    const address = Number.parseInt(start, 16);
    if (Number.parseInt(end, 16) - address >= LENGTH_BYTES)
      return FrozenMemory.open({
        pid: process.pid,
        ranges: [{ start: address, lengthBytes: LENGTH_BYTES }],
        filePages: true,
      });
  }
  throw new SnowflockError('internal', `no program text of ${LENGTH_BYTES} bytes in /proc/self/maps`);
}
