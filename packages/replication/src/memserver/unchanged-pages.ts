// Which pages of a frozen process are those of an earlier one of the same VM, unchanged. Both were forked from one QEMU, so a page that it has
// not written in between is one physical frame that both map, and their page maps name it; a page that was written since has been copied
// to another frame. So nothing is read or compared but page maps.

import { PAGE_BYTES } from '@snowflock/protocol/pages';
import { PresenceMap } from '../presence-map.ts';
import { chunksOf, PAGE_MAP_CHUNK_ENTRIES, PageMap, type MemoryRange } from './page-map.ts';

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
  using own = PageMap.open(pid);
  using earlier = PageMap.open(earlierPid);
  const first = new Uint32Array(2 * PAGE_MAP_CHUNK_ENTRIES);
  for (const chunk of chunksOf(ranges)) {
    first.set(own.read(chunk));
    markSame(map, chunk.page, [first, earlier.read(chunk), own.read(chunk)], chunk.count);
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
