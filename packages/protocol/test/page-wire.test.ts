import * as fc from 'fast-check';
import { randomBytes } from 'node:crypto';
import { describe, expect, it } from 'vitest';
import {
  checkPageBitmap,
  checkPageProof,
  createPageFrame,
  decodePageHello,
  encodePageHello,
  hasPageData,
  PAGE_FRAME_HEADER_BYTES,
  PAGE_FRAME_MAX_BYTES,
  PAGE_WIRE_MAX_PAGES,
  pageBitmapBytes,
  pageDataOffset,
  type PageFrame,
  PageFrameType,
  pageProof,
  readPageFrame,
  SnowflockError,
  writePageFrame,
} from '../src/index.ts';

const readFrame: fc.Arbitrary<PageFrame> = fc.record({
  length: fc.constant(PAGE_FRAME_HEADER_BYTES),
  type: fc.constant(PageFrameType.read),
  region: fc.integer({ min: 0, max: 2 }),
  flags: fc.integer({ min: 0, max: 255 }),
  pageCount: fc.integer({ min: 1, max: PAGE_WIRE_MAX_PAGES }),
  dataPages: fc.constant(0),
  requestId: fc.integer({ min: 0, max: 2 ** 32 - 1 }),
  firstPage: fc.integer({ min: 0, max: 2 ** 32 - PAGE_WIRE_MAX_PAGES }),
});

/** A DATA frame with the given pages set, its data left out. */
function dataFrame(present: readonly boolean[]): { frame: PageFrame; bytes: Buffer } {
  const dataPages = present.filter(Boolean).length;
  const frame = { ...createPageFrame(), type: PageFrameType.data, pageCount: present.length, dataPages };
  const bytes = Buffer.alloc(pageDataOffset(present.length));
  writePageFrame(bytes, 0, frame);
  present.forEach((has, index) => {
    const at = PAGE_FRAME_HEADER_BYTES + (index >>> 3);
    if (has) bytes[at] = (bytes[at] ?? 0) | (1 << (index & 7));
  });
  return { frame, bytes };
}

describe('page frames', () => {
  it('come back as they were written, whatever stands before and behind them', () => {
    fc.assert(
      fc.property(
        fc.array(readFrame, { minLength: 1, maxLength: 20 }),
        fc.integer({ min: 0, max: 19 }),
        (frames, cut) => {
          const bytes = Buffer.alloc(frames.length * PAGE_FRAME_HEADER_BYTES);
          let end = 0;
          for (const frame of frames) end = writePageFrame(bytes, end, frame);
          const seen = createPageFrame();
          frames.forEach((frame, index) => {
            const at = index * PAGE_FRAME_HEADER_BYTES;
            expect(readPageFrame(bytes, at, at + cut, seen)).toBe(false);
            expect(readPageFrame(bytes, at, bytes.length, seen)).toBe(true);
            expect(seen).toEqual(frame);
          });
        },
      ),
    );
  });

  it('never ask for more than the largest frame, whatever the bytes', () => {
    fc.assert(
      fc.property(
        fc.uint8Array({ minLength: 20, maxLength: 20 }),
        fc.integer({ min: 1, max: 5 }),
        (noise, type) => {
          const bytes = Buffer.from(noise);
          bytes[4] = type;
          const frame = createPageFrame();
          try {
            readPageFrame(bytes, 0, bytes.length, frame);
          } catch (error) {
            expect(error).toBeInstanceOf(SnowflockError);
            return;
          }
          expect(frame.length).toBeGreaterThanOrEqual(PAGE_FRAME_HEADER_BYTES);
          expect(frame.length).toBeLessThanOrEqual(PAGE_FRAME_MAX_BYTES);
        },
      ),
      { numRuns: 2000 },
    );
  });

  it.each([
    ['an unknown type', { type: 11 }],
    ['no pages', { pageCount: 0 }],
    ['too many pages', { pageCount: PAGE_WIRE_MAX_PAGES + 1 }],
    ['an unknown region', { region: 3 }],
    ['pages past the last one', { firstPage: 2 ** 32 - 1, pageCount: 2 }],
    ['more data than pages', { type: PageFrameType.data, pageCount: 1, dataPages: 2 }],
    ['an unknown error code', { type: PageFrameType.error, flags: 77 }],
  ])('with %s are refused', (_what, fields) => {
    const bytes = Buffer.alloc(PAGE_FRAME_HEADER_BYTES);
    writePageFrame(bytes, 0, { ...createPageFrame(), type: PageFrameType.read, pageCount: 1, ...fields });
    expect(() => readPageFrame(bytes, 0, bytes.length, createPageFrame())).toThrow(SnowflockError);
  });

  it('with a length that does not fit their fields are refused', () => {
    const { bytes } = dataFrame([true]);
    bytes.writeUInt32LE(2 ** 32 - 1, 0);
    expect(() => readPageFrame(bytes, 0, bytes.length, createPageFrame())).toThrow(/length/);
  });

  it('have a bitmap that agrees with their count of data pages', () => {
    fc.assert(
      fc.property(fc.array(fc.boolean(), { minLength: 1, maxLength: PAGE_WIRE_MAX_PAGES }), (present) => {
        const { frame, bytes } = dataFrame(present);
        checkPageBitmap(bytes, 0, frame);
        present.forEach((has, index) => expect(hasPageData(bytes, 0, index)).toBe(has));
        frame.dataPages++;
        expect(() => checkPageBitmap(bytes, 0, frame)).toThrow(SnowflockError);
      }),
    );
  });

  it('have no bits behind their last page', () => {
    const { frame, bytes } = dataFrame([true, false, false]);
    expect(pageBitmapBytes(3)).toBe(4);
    bytes[PAGE_FRAME_HEADER_BYTES] = 0b1000;
    expect(() => checkPageBitmap(bytes, 0, frame)).toThrow(/behind/);
  });
});

describe('the handshake', () => {
  const key = randomBytes(32);
  const nonces = { server: randomBytes(32), client: randomBytes(32) };

  it('accepts the right key only, for the right side and nonces only', () => {
    const proof = pageProof(key, 'client', nonces);
    expect(checkPageProof(proof, key, 'client', nonces)).toBe(true);
    expect(checkPageProof(proof, randomBytes(32), 'client', nonces)).toBe(false);
    expect(checkPageProof(proof, key, 'server', nonces)).toBe(false);
    expect(checkPageProof(proof, key, 'client', { ...nonces, server: randomBytes(32) })).toBe(false);
    expect(checkPageProof(proof, key, 'client', { server: nonces.client, client: nonces.server })).toBe(
      false,
    );
    expect(checkPageProof(proof.subarray(1), key, 'client', nonces)).toBe(false);
  });

  it('recognises a hello and refuses anything else', () => {
    expect(decodePageHello(encodePageHello(nonces.server))).toEqual(nonces.server);
    expect(() => decodePageHello(Buffer.alloc(40))).toThrow(SnowflockError);
    expect(() => decodePageHello(encodePageHello(nonces.server).subarray(0, 39))).toThrow(SnowflockError);
  });
});
