// Copying what a memtap of this host serves to page files. A VM that came from another host becomes independent of it so.

import { PresenceMap } from '../presence-map.ts';
import { openMemtapFiles, type MemtapFilesOptions } from '../memserver/memtap-files.ts';
import { writePageFile } from './write-page-file.ts';

export interface PagesToKeep {
  readonly from: MemtapFilesOptions;
  readonly ramPath: string;
  readonly diskPath: string | undefined;
}

/** Answers how many pages each has. Throws 'source-lost' when they cannot be fetched, 'no-resources' when the disk is full. */
export async function keepPages(
  id: string,
  { from, ramPath, diskPath }: PagesToKeep,
): Promise<{ ram: number; disk: number }> {
  const { memory, disk } = await openMemtapFiles(from);
  try {
    const { presence } = memory;
    await writePageFile(ramPath, id, { presence, read: (target, run) => memory.read(target, run) });
    if (disk === undefined || diskPath === undefined) return { ram: presence.pageCount, disk: 0 };
    await writePageFile(diskPath, id, {
      presence: PresenceMap.full(disk.pageCount),
      read: (target, run) => disk.read(target, run),
    });
    return { ram: presence.pageCount, disk: disk.pageCount };
  } finally {
    await Promise.all([memory.close(), disk?.close()]);
  }
}
