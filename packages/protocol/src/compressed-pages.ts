// Compressed DATA frames: behind the bitmap, the pages are one block of zstd.
//
// Invariant: the bitmap says how many bytes of pages there are, and both the block's output and its window are held to that, or to
// what the largest frame has: a forged block makes its reader allocate no more than an honest one.

import { constants, zstdCompress, zstdDecompressSync } from 'node:zlib';
import { SnowflockError } from './errors.ts';
import {
  PAGE_BYTES,
  PAGE_FLAG_COMPRESSED,
  PAGE_FRAME_HEADER_BYTES,
  PAGE_WIRE_MAX_PAGES,
  pageDataOffset,
  type PageFrame,
  writePageFrame,
} from './page-wire.ts';

/** By measurement: docs/bench/distribution.md. */
const LEVEL = 1;
/** What does not get smaller by an eighth is not worth being unpacked. */
const WORTH = 7 / 8;
const WINDOW_LOG = Math.log2(PAGE_WIRE_MAX_PAGES * PAGE_BYTES);
const ROOM_BYTES = 1024;

/** Compresses the DATA frame that stands in `bytes`, in the thread pool. Undefined: it is not worth it. */
export async function compressPages(
  bytes: Buffer,
  frame: Readonly<PageFrame>,
): Promise<Buffer<ArrayBuffer> | undefined> {
  const head = pageDataOffset(frame.pageCount);
  const rawBytes = frame.dataPages * PAGE_BYTES;
  const block = await zstd(bytes.subarray(head, head + rawBytes));
  if (block.length > rawBytes * WORTH) return undefined;
  const packed = Buffer.allocUnsafe(head + block.length);
  writePageFrame(packed, 0, { ...frame, flags: PAGE_FLAG_COMPRESSED, length: packed.length });
  bytes.copy(packed, PAGE_FRAME_HEADER_BYTES, PAGE_FRAME_HEADER_BYTES, head);
  block.copy(packed, head);
  return packed;
}

function zstd(pages: Buffer): Promise<Buffer> {
  const params = { [constants.ZSTD_c_compressionLevel]: LEVEL, [constants.ZSTD_c_windowLog]: WINDOW_LOG };
  // one chunk, so that nothing is put together from many
  const options = { params, pledgedSrcSize: pages.length, chunkSize: pages.length + ROOM_BYTES };
  return new Promise((resolve, reject) =>
    zstdCompress(pages, options, (error, block) => (error ? reject(error) : resolve(block))),
  );
}

/**
 * Unpacks the compressed frame at `offset` of `bytes`, whose bitmap was checked, to the begin of `target`: a DATA frame as it would
 * have come uncompressed. Throws 'bad-request'.
 */
export function decompressPages(
  target: Buffer,
  frame: Readonly<PageFrame>,
  bytes: Buffer,
  offset: number,
): void {
  const head = pageDataOffset(frame.pageCount);
  const rawBytes = frame.dataPages * PAGE_BYTES;
  const pages = unzstd(bytes.subarray(offset + head, offset + frame.length), rawBytes);
  if (pages.length !== rawBytes)
    throw new SnowflockError('bad-request', `page wire: ${pages.length} bytes of pages, not ${rawBytes}`);
  writePageFrame(target, 0, { ...frame, flags: 0 });
  bytes.copy(target, PAGE_FRAME_HEADER_BYTES, offset + PAGE_FRAME_HEADER_BYTES, offset + head);
  pages.copy(target, head);
}

function unzstd(block: Buffer, rawBytes: number): Buffer {
  const params = { [constants.ZSTD_d_windowLogMax]: WINDOW_LOG };
  try {
    return zstdDecompressSync(block, { params, chunkSize: rawBytes, maxOutputLength: rawBytes });
  } catch (error) {
    throw new SnowflockError('bad-request', 'page wire: compressed pages that cannot be unpacked', {
      cause: error,
    });
  }
}
