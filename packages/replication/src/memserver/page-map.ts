// The kernel's page map of a process: 8 bytes a page that say whether it is there, and in which frame
// (Documentation/admin-guide/mm/pagemap.rst).

import { closeSync, openSync, readSync } from 'node:fs';
import { PAGE_BYTES, SnowflockError } from '@snowflock/protocol/pages';

/** 512 KiB of entries: 256 MiB of memory. */
export const PAGE_MAP_CHUNK_ENTRIES = 65536;
const ENTRY_BYTES = 8;

export interface MemoryRange {
  /** Address in the process. A number: user addresses are below 2^47. */
  readonly start: number;
  readonly lengthBytes: number;
}

/** As much of memory as is read at once. */
export interface PageMapChunk {
  /** Number of its first page when the ranges, one after the other, are one region. */
  readonly page: number;
  /** The same page by its address. */
  readonly pageOfAddress: number;
  readonly count: number;
}

export function* chunksOf(ranges: readonly MemoryRange[]): Generator<PageMapChunk> {
  let page = 0;
  for (const { start, lengthBytes } of ranges) {
    const pages = lengthBytes / PAGE_BYTES;
    for (let at = 0; at < pages; at += PAGE_MAP_CHUNK_ENTRIES) {
      const count = Math.min(PAGE_MAP_CHUNK_ENTRIES, pages - at);
      yield { page: page + at, pageOfAddress: start / PAGE_BYTES + at, count };
    }
    page += pages;
  }
}

export class PageMap implements Disposable {
  readonly #pid: number;
  readonly #fd: number;
  readonly #entries = new Uint32Array(2 * PAGE_MAP_CHUNK_ENTRIES);
  readonly #bytes = Buffer.from(this.#entries.buffer);

  private constructor(pid: number, fd: number) {
    this.#pid = pid;
    this.#fd = fd;
  }

  /** Throws 'source-lost' when there is no such process. */
  static open(pid: number): PageMap {
    try {
      return new PageMap(pid, openSync(`/proc/${pid}/pagemap`, 'r'));
    } catch (error) {
      throw new SnowflockError('source-lost', `cannot open the page map of process ${pid}`, { cause: error });
    }
  }

  /** Two words a page, the lower first; valid until the next read. Throws 'source-lost' when the process is gone. */
  read({ pageOfAddress, count }: PageMapChunk): Uint32Array {
    const length = count * ENTRY_BYTES;
    const got = readSync(this.#fd, this.#bytes, 0, length, pageOfAddress * ENTRY_BYTES);
    if (got !== length)
      throw new SnowflockError('source-lost', `the page map of process ${this.#pid} ends early`);
    return this.#entries.subarray(0, 2 * count);
  }

  [Symbol.dispose](): void {
    closeSync(this.#fd);
  }
}
