// Which pages of a frozen process are those of an earlier one of the same VM, unchanged. Both were forked from one QEMU, so a page that it has
// not written in between is one physical frame that both map, and their page maps name it; a page that was written since has been copied
// to another frame. So nothing is read or compared but page maps (Documentation/admin-guide/mm/pagemap.rst): 8 bytes a page.

import { closeSync, openSync, readSync } from 'node:fs';
import { PAGE_BYTES, SnowflockError } from '@snowflock/protocol/pages';
import { PresenceMap } from '../presence-map.ts';
import type { MemoryRange } from './frozen-memory.ts';

/** 512 KiB of entries: 256 MiB of memory. */
const CHUNK_ENTRIES = 65536;
const ENTRY_BYTES = 8;
const PRESENT = 0x8000_0000;
const SWAPPED = 0x4000_0000;
/** Bits 32 to 54 of an entry: the upper part of the frame's number, which is all zero for who may not know it. */
const FRAME_HIGH = 0x007f_ffff;

/**
 * The ranges lie at the same addresses in both. A frame may be moved by the kernel at any time, so `pid` is read before and after `earlierPid`:
 * a page counts only if all three agree. That can miss a page that is unchanged, and never takes one for unchanged that is not.
 * Throws 'source-lost' when one of them is gone.
 */
export function unchangedPages(
  { pid, earlierPid }: { readonly pid: number; readonly earlierPid: number },
  ranges: readonly MemoryRange[],
): PresenceMap {
  const map = new PresenceMap(ranges.reduce((sum, { lengthBytes }) => sum + lengthBytes / PAGE_BYTES, 0));
  const own = PageMapReader.open(pid);
  let earlier: PageMapReader | undefined;
  try {
    earlier = PageMapReader.open(earlierPid);
    const again = new Uint32Array(2 * CHUNK_ENTRIES);
    let firstPage = 0;
    for (const { start, lengthBytes } of ranges) {
      const pages = lengthBytes / PAGE_BYTES;
      for (let at = 0; at < pages; at += CHUNK_ENTRIES) {
        const chunk = { firstPage: start / PAGE_BYTES + at, count: Math.min(CHUNK_ENTRIES, pages - at) };
        const before = own.read(chunk);
        again.set(before);
        markSame(map, firstPage + at, [again, earlier.read(chunk), own.read(chunk)], chunk.count);
      }
      firstPage += pages;
    }
  } finally {
    own.close();
    earlier?.close();
  }
  return map;
}

function markSame(
  map: PresenceMap,
  firstPage: number,
  [a, b, c]: readonly [Uint32Array, Uint32Array, Uint32Array],
  count: number,
): void {
  for (let index = 0; index < count; index++) {
    const [low, high] = [a[2 * index] ?? 0, a[2 * index + 1] ?? 0];
    if ((high & PRESENT) === 0 || (high & SWAPPED) !== 0 || (low === 0 && (high & FRAME_HIGH) === 0))
      continue;
    const frame = high & FRAME_HIGH;
    const same = [b, c].every(
      (other) =>
        other[2 * index] === low &&
        ((other[2 * index + 1] ?? 0) & (PRESENT | SWAPPED | FRAME_HIGH)) >>> 0 === (PRESENT | frame) >>> 0,
    );
    if (same) map.set(firstPage + index);
  }
}

class PageMapReader {
  readonly #pid: number;
  readonly #fd: number;
  readonly #entries = new Uint32Array(2 * CHUNK_ENTRIES);
  readonly #bytes = Buffer.from(this.#entries.buffer);

  private constructor(pid: number, fd: number) {
    this.#pid = pid;
    this.#fd = fd;
  }

  static open(pid: number): PageMapReader {
    try {
      return new PageMapReader(pid, openSync(`/proc/${pid}/pagemap`, 'r'));
    } catch (error) {
      throw new SnowflockError('source-lost', `cannot open the page map of process ${pid}`, { cause: error });
    }
  }

  /** Valid until the next read. */
  read({ firstPage, count }: { readonly firstPage: number; readonly count: number }): Uint32Array {
    const length = count * ENTRY_BYTES;
    const got = readSync(this.#fd, this.#bytes, 0, length, firstPage * ENTRY_BYTES);
    if (got !== length)
      throw new SnowflockError('source-lost', `the page map of process ${this.#pid} ends early`);
    return this.#entries;
  }

  close(): void {
    closeSync(this.#fd);
  }
}
