import * as fc from 'fast-check';
import { randomBytes } from 'node:crypto';
import { constants, zstdCompressSync } from 'node:zlib';
import { describe, expect, it } from 'vitest';
import {
  compressPages,
  createPageFrame,
  decompressPages,
  isCompressed,
  PAGE_BYTES,
  PAGE_FLAG_COMPRESSED,
  PAGE_FRAME_HEADER_BYTES,
  PAGE_FRAME_MAX_BYTES,
  PAGE_WIRE_MAX_PAGES,
  pageDataOffset,
  type PageFrame,
  PageFrameType,
  readPageFrame,
  SnowflockError,
  writePageFrame,
} from '../src/index.ts';

/** A DATA frame; `fill` has the byte that each page consists of, 0 of those that are not in it. */
function dataFrame(fill: readonly number[]): { frame: PageFrame; bytes: Buffer } {
  const pages = fill.filter((byte) => byte !== 0);
  const frame: PageFrame = {
    ...createPageFrame(),
    ...{ type: PageFrameType.data, pageCount: fill.length, dataPages: pages.length },
    ...{ requestId: 77, firstPage: 5, region: 2 },
  };
  const bytes = Buffer.alloc(pageDataOffset(fill.length) + pages.length * PAGE_BYTES);
  writePageFrame(bytes, 0, frame);
  fill.forEach((byte, index) => {
    const at = PAGE_FRAME_HEADER_BYTES + (index >>> 3);
    if (byte !== 0) bytes[at] = (bytes[at] ?? 0) | (1 << (index & 7));
  });
  pages.forEach((byte, index) =>
    bytes.fill(byte, pageDataOffset(fill.length) + index * PAGE_BYTES).writeUInt32LE(index, bytes.length - 4),
  );
  return { frame, bytes };
}

/** A frame that says it has `dataPages` of as many pages, whatever its block is. */
function forged(block: Buffer, dataPages: number): { frame: PageFrame; bytes: Buffer } {
  const head = pageDataOffset(dataPages);
  const frame = {
    ...{ ...createPageFrame(), type: PageFrameType.data, flags: PAGE_FLAG_COMPRESSED },
    ...{ pageCount: dataPages, dataPages, length: head + block.length },
  };
  const bytes = Buffer.alloc(frame.length, 0xff);
  writePageFrame(bytes, 0, frame);
  block.copy(bytes, head);
  return { frame, bytes };
}

const target = Buffer.alloc(PAGE_FRAME_MAX_BYTES);

function read(bytes: Buffer): PageFrame {
  const frame = createPageFrame();
  readPageFrame(bytes, 0, bytes.length, frame);
  return frame;
}

describe('compressed pages', () => {
  it('come back as they were, wherever the frame stands', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc
          .array(fc.integer({ min: 0, max: 255 }), { minLength: 1, maxLength: PAGE_WIRE_MAX_PAGES })
          .filter((fill) => fill.some((byte) => byte !== 0)),
        fc.integer({ min: 0, max: 50 }),
        async (fill, before) => {
          const { frame, bytes } = dataFrame(fill);
          const packed = await compressPages(bytes, frame);
          if (packed === undefined) throw new Error('such pages can be compressed');
          const received = Buffer.concat([Buffer.alloc(before), packed, Buffer.alloc(7)]);
          const seen = createPageFrame();
          expect(readPageFrame(received, before, received.length, seen)).toBe(true);
          expect(isCompressed(seen)).toBe(true);
          expect(seen.length).toBe(packed.length);
          decompressPages(target, seen, received, before);
          expect(target.subarray(0, bytes.length).equals(bytes)).toBe(true);
        },
      ),
      { numRuns: 50 },
    );
  });

  it('are left as they are when that makes them hardly smaller', async () => {
    const { frame, bytes } = dataFrame([1, 2, 3, 4]);
    randomBytes(4 * PAGE_BYTES).copy(bytes, pageDataOffset(4));
    expect(await compressPages(bytes, frame)).toBeUndefined();
  });

  it('are refused at the header when their length is none or not less than that of the pages', () => {
    const { frame, bytes } = forged(Buffer.alloc(10), 2);
    for (const length of [0, pageDataOffset(2), pageDataOffset(2) + 2 * PAGE_BYTES, 2 ** 32 - 1]) {
      writePageFrame(bytes, 0, { ...frame, length });
      expect(() => read(bytes)).toThrow(/length/);
    }
    writePageFrame(bytes, 0, { ...frame, dataPages: 0 });
    expect(() => read(bytes)).toThrow(/length/);
    writePageFrame(bytes, 0, { ...frame, dataPages: 3 });
    expect(() => read(bytes)).toThrow(/too many/);
    bytes[6] = 2;
    expect(() => read(bytes)).toThrow(SnowflockError);
  });

  it('are no READ, and no SPLIT', () => {
    for (const type of [PageFrameType.read, PageFrameType.split])
      expect(isCompressed({ ...createPageFrame(), type, flags: PAGE_FLAG_COMPRESSED })).toBe(false);
  });

  it('are refused when they are more or fewer than the bitmap says, cut off, or no zstd', () => {
    const three = zstdCompressSync(Buffer.alloc(3 * PAGE_BYTES, 1));
    const blocks = [three, three.subarray(0, -5), randomBytes(40), Buffer.alloc(1)];
    for (const block of blocks)
      for (const pages of [2, 4]) {
        const { frame, bytes } = forged(block, pages);
        expect(() => decompressPages(target, frame, bytes, 0)).toThrow(SnowflockError);
      }
    const { frame, bytes } = forged(three, 3);
    decompressPages(target, frame, bytes, 0);
  });

  it('are refused when they grow without end, or want a large window', () => {
    const huge = zstdCompressSync(Buffer.alloc(64 << 20));
    const window = zstdCompressSync(Buffer.alloc(8 << 20), { params: { [constants.ZSTD_c_windowLog]: 23 } });
    for (const block of [huge, window]) {
      const { frame, bytes } = forged(block, PAGE_WIRE_MAX_PAGES);
      expect(() => decompressPages(target, frame, bytes, 0)).toThrow(/unpacked/);
    }
  });

  it('of any bytes are refused with an error of the protocol, or fit', () => {
    fc.assert(
      fc.property(
        fc.uint8Array({ minLength: 1, maxLength: 200 }),
        fc.integer({ min: 0, max: 30 }),
        fc.integer({ min: 1, max: 255 }),
        (noise, at, flip) => {
          const block = zstdCompressSync(Buffer.alloc(2 * PAGE_BYTES, noise));
          block[at % block.length] = (block[at % block.length] ?? 0) ^ flip;
          const { frame, bytes } = forged(block, 2);
          try {
            decompressPages(target, frame, bytes, 0);
          } catch (error) {
            expect(error).toMatchObject({ code: 'bad-request' });
          }
        },
      ),
      { numRuns: 500 },
    );
  });
});
