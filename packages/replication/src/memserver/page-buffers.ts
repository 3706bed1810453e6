// Answer buffers of the memserver: one holds one frame from the moment pages are read until the socket has taken it.
//
// Keeps at most MAX_FREE free ones of each size; a buffer is either free or lent, and whoever borrowed it
// gives it back exactly once through `release`, which is made once per buffer so that a page costs no closure.

import { PAGE_BYTES, PAGE_FRAME_MAX_BYTES } from '@snowflock/protocol/pages';

/** Frames of up to this many pages use small buffers: single faults and their first neighbours. */
const SMALL_PAGES = 8;
const SMALL_BYTES = 64 + SMALL_PAGES * PAGE_BYTES;
/** Free buffers kept per size; more may be lent, the rest is left to the garbage collector. */
const MAX_FREE = 64;

export interface PageBuffer {
  readonly bytes: Buffer;
  readonly release: () => void;
}

export class PageBufferPool {
  readonly #small: PageBuffer[] = [];
  readonly #large: PageBuffer[] = [];

  borrow(pageCount: number): PageBuffer {
    return pageCount <= SMALL_PAGES
      ? take(this.#small, SMALL_BYTES)
      : take(this.#large, PAGE_FRAME_MAX_BYTES);
  }
}

function take(free: PageBuffer[], size: number): PageBuffer {
  const buffer = free.pop();
  if (buffer !== undefined) return buffer;
  const fresh: PageBuffer = {
    bytes: Buffer.allocUnsafeSlow(size),
    release: () => {
      if (free.length < MAX_FREE) free.push(fresh);
    },
  };
  return fresh;
}
