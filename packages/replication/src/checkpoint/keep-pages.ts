// Copying what a memtap of this host serves to page files: reading its files makes it fetch whatever is not here yet. A VM that came
// from another host becomes independent of it so.

import { open, readFile } from 'node:fs/promises';
import { PAGE_BYTES, SnowflockError } from '@snowflock/protocol/pages';
import { PRESENCE_MAX_PAGES, PresenceMap } from '../presence-map.ts';
import { UpstreamMemory } from '../memserver/upstream-memory.ts';
import { writePageFile } from './write-page-file.ts';

export interface PagesToKeep {
  readonly from: {
    readonly ramPath: string;
    readonly presencePath: string;
    readonly disk?: { readonly path: string; readonly pageCount: number } | undefined;
  };
  readonly ramPath: string;
  readonly diskPath: string | undefined;
}

/** Answers how many pages each has. Throws 'source-lost' when they cannot be fetched, 'no-resources' when the disk is full. */
export async function keepPages(
  id: string,
  { from, ramPath, diskPath }: PagesToKeep,
): Promise<{ ram: number; disk: number }> {
  const { pageCount } = PresenceMap.decode(await readFile(from.presencePath), {
    maxPages: PRESENCE_MAX_PAGES,
  });
  const memory = await UpstreamMemory.open({ ...from, own: new PresenceMap(pageCount) });
  try {
    await writePageFile(ramPath, id, {
      presence: memory.presence,
      read: (target, run) => memory.read(target, run),
    });
  } finally {
    await memory.close();
  }
  if (from.disk === undefined || diskPath === undefined) return { ram: pageCount, disk: 0 };
  await keepDisk(id, from.disk, diskPath);
  return { ram: pageCount, disk: from.disk.pageCount };
}

async function keepDisk(
  id: string,
  { path, pageCount }: { readonly path: string; readonly pageCount: number },
  diskPath: string,
): Promise<void> {
  await using file = await open(path, 'r');
  await writePageFile(diskPath, id, {
    presence: PresenceMap.full(pageCount),
    read: async (target, { offset, firstPage, pageCount: count }) => {
      const { bytesRead } = await file.read(target, offset, count * PAGE_BYTES, firstPage * PAGE_BYTES);
      if (bytesRead !== count * PAGE_BYTES)
        throw new SnowflockError('source-lost', `${path} cannot be read: it ends early`);
    },
  });
}
