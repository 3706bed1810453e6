// Telling an all-zero page from others, fast: most pages differ in their first word.

import { PAGE_BYTES } from '@snowflock/protocol/pages';

export const ZERO_PAGE: Buffer = Buffer.alloc(PAGE_BYTES);

export function isZeroPage(buffer: Buffer, offset: number): boolean {
  if (buffer[offset] !== 0 || buffer[offset + PAGE_BYTES - 1] !== 0) return false;
  return ZERO_PAGE.compare(buffer, offset, offset + PAGE_BYTES) === 0;
}
