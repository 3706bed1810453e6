// The list of pages that clones needed, in the order of the first asking, each once: an earlier fork's first, then this fork's. The memserver of the
// parent's host has it (memserver/need-log.ts); memtaps and relays have its begin, as far as they wanted to hear of it.

/** 256 MiB: what needs more is past its begin. */
export const NEEDS_MAX = 65_536;
const ENTRY_BYTES = 4;

/** A part of the list: all of it an earlier fork's, or none. */
export interface Needs {
  readonly pages: readonly number[];
  readonly earlier: boolean;
}

/** At most `limit` pages from the `from`th on. `earlier`: how many of `pages` are an earlier fork's. */
export function partOf(
  list: { readonly pages: readonly number[]; readonly earlier: number },
  { from, limit }: { readonly from: number; readonly limit: number },
): Needs {
  const earlier = from < list.earlier;
  const end = Math.min(from + limit, earlier ? list.earlier : list.pages.length);
  return { pages: list.pages.slice(from, end), earlier };
}

/** u32 little-endian for each page. */
export function encodeNeeds(pages: readonly number[]): Buffer {
  const bytes = Buffer.allocUnsafe(pages.length * ENTRY_BYTES);
  pages.forEach((page, index) => bytes.writeUInt32LE(page, index * ENTRY_BYTES));
  return bytes;
}

export function decodeNeeds(bytes: Buffer): number[] {
  const pages: number[] = [];
  for (let at = 0; at + ENTRY_BYTES <= bytes.length; at += ENTRY_BYTES) pages.push(bytes.readUInt32LE(at));
  return pages;
}
