// The frozen process's memory: its page map (which pages exist) and its pages.
//
// Owns one descriptor of /proc/PID/mem. That descriptor names the process's address space, not the pid: once the process
// is gone reads return nothing, and a recycled pid cannot be read by mistake.
// Invariant: a page outside the presence map is never read, because reading it would create it, or, of a clone, fetch it.
// A clone's RAM is a private mapping of its memtap's file: what it has not written is in that file (upstream-memory.ts).

import { closeSync, openSync, readSync } from 'node:fs';
import { PAGE_BYTES, SnowflockError } from '@snowflock/protocol/pages';
import { PresenceMap } from '../presence-map.ts';
import { chunksOf, PageMap, type MemoryRange } from './page-map.ts';

export class FrozenMemory {
  readonly pid: number;
  readonly presence: PresenceMap;
  readonly #fd: number;
  readonly #ranges: readonly MemoryRange[];

  private constructor(options: {
    pid: number;
    fd: number;
    ranges: readonly MemoryRange[];
    presence: PresenceMap;
  }) {
    this.pid = options.pid;
    this.#fd = options.fd;
    this.#ranges = options.ranges;
    this.presence = options.presence;
  }

  /** Opens the memory of `pid` and reads its page map. The ranges, one after the other, are the region's pages. */
  static open(options: {
    readonly pid: number;
    readonly ranges: readonly MemoryRange[];
    /** Also pages of files that are mapped. */
    readonly filePages?: boolean;
  }): FrozenMemory {
    const { pid, ranges, filePages = false } = options;
    let fd: number;
    try {
      fd = openSync(`/proc/${pid}/mem`, 'r');
    } catch (error) {
      throw new SnowflockError('source-lost', `cannot open the memory of frozen process ${pid}`, {
        cause: error,
      });
    }
    try {
      return new FrozenMemory({ pid, fd, ranges, presence: readPresence(pid, ranges, { filePages }) });
    } catch (error) {
      closeSync(fd);
      throw error;
    }
  }

  /**
   * Reads `pageCount` present pages from `firstPage` into `target` at `offset`.
   * Throws 'source-lost' when the process is gone.
   */
  read(target: Buffer, options: { offset: number; firstPage: number; pageCount: number }): void {
    let offset = options.offset;
    let at = options.firstPage * PAGE_BYTES;
    let left = options.pageCount * PAGE_BYTES;
    for (const range of this.#ranges) {
      if (at >= range.lengthBytes) {
        at -= range.lengthBytes;
        continue;
      }
      while (left > 0 && at < range.lengthBytes) {
        const read = this.#pread(target, offset, Math.min(left, range.lengthBytes - at), range.start + at);
        offset += read;
        at += read;
        left -= read;
      }
      at = 0;
      if (left === 0) return;
    }
    throw new SnowflockError('internal', `page ${options.firstPage} is outside the frozen memory`);
  }

  close(): void {
    closeSync(this.#fd);
  }

  #pread(target: Buffer, offset: number, length: number, position: number): number {
    let read: number;
    try {
      read = readSync(this.#fd, target, offset, length, position);
    } catch (error) {
      throw new SnowflockError('source-lost', `frozen process ${this.pid}: its memory cannot be read`, {
        cause: error,
      });
    }
    if (read === 0) throw new SnowflockError('source-lost', `frozen process ${this.pid} is gone`);
    return read;
  }
}

/** Which pages the process itself has. */
export function readPresence(
  pid: number,
  ranges: readonly MemoryRange[],
  options: { readonly filePages: boolean },
): PresenceMap {
  const map = new PresenceMap(ranges.reduce((sum, { lengthBytes }) => sum + lengthBytes / PAGE_BYTES, 0));
  using pageMap = PageMap.open(pid);
  for (const chunk of chunksOf(ranges)) map.setFromPagemap(chunk.page, pageMap.read(chunk), options);
  return map;
}
