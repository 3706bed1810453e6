// What a memtap of this host serves, read as a snapshot is: its files hold a copy of the whole, and reading them makes it fetch what is
// not here yet. For whoever passes it on: a relay, a copy that is kept.
//
// Owns a descriptor of each file.

import { open, readFile, type FileHandle } from 'node:fs/promises';
import { PAGE_BYTES, SnowflockError, toSnowflockError } from '@snowflock/protocol/pages';
import { PRESENCE_MAX_PAGES, PresenceMap } from '../presence-map.ts';
import type { PageRun, SnapshotDisk } from './snapshot.ts';
import { UpstreamMemory } from './upstream-memory.ts';

export interface MemtapFilesOptions {
  /** The RAM file that it serves. */
  readonly ramPath: string;
  /** Serialised presence map of the snapshot. */
  readonly presencePath: string;
  readonly disk?: { readonly path: string; readonly pageCount: number } | undefined;
}

export interface MemtapFiles {
  readonly memory: UpstreamMemory;
  readonly disk: SnapshotDisk | undefined;
}

/** Throws 'source-lost' when the memtap does not answer. */
export async function openMemtapFiles(options: MemtapFilesOptions): Promise<MemtapFiles> {
  const { ramPath, presencePath, disk } = options;
  const { pageCount } = PresenceMap.decode(await readFile(presencePath), { maxPages: PRESENCE_MAX_PAGES });
  const memory = await UpstreamMemory.open({ ramPath, presencePath, own: new PresenceMap(pageCount) });
  try {
    return { memory, disk: disk && new MemtapDisk(await open(disk.path, 'r'), disk) };
  } catch (error) {
    await memory.close();
    throw lost(disk?.path ?? ramPath, error);
  }
}

class MemtapDisk implements SnapshotDisk {
  readonly pageCount: number;
  readonly #file: FileHandle;
  readonly #path: string;

  constructor(file: FileHandle, { path, pageCount }: { path: string; pageCount: number }) {
    this.#file = file;
    this.#path = path;
    this.pageCount = pageCount;
  }

  async read(target: Buffer, { offset, firstPage, pageCount }: PageRun): Promise<void> {
    const wanted = pageCount * PAGE_BYTES;
    try {
      const { bytesRead } = await this.#file.read(target, offset, wanted, firstPage * PAGE_BYTES);
      if (bytesRead !== wanted) throw new Error('it ends early');
    } catch (error) {
      throw lost(this.#path, error);
    }
  }

  async close(): Promise<void> {
    await this.#file.close();
  }
}

function lost(path: string, error: unknown): SnowflockError {
  return new SnowflockError(
    'source-lost',
    `${path} cannot be read from its memtap: ${toSnowflockError(error).message}`,
    { cause: error },
  );
}
