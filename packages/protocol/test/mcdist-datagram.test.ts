import * as fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  createMcdistHeader,
  MCDIST_OVERHEAD_BYTES,
  mcdistGroup,
  McdistOpener,
  McdistSealer,
  McdistType,
  PAGE_BYTES,
  pieceBytes,
  piecesFor,
  readMcdistHeader,
} from '../src/index.ts';

const KEY = Buffer.from(Array.from({ length: 32 }, (_, index) => index));
const OTHER_KEY = Buffer.alloc(32, 7);
const all = (): boolean => true;

function piece(page: Buffer, { index, pieces }: { index: number; pieces: number }): Buffer {
  const size = pieceBytes(pieces);
  return page.subarray(index * size, Math.min(PAGE_BYTES, (index + 1) * size));
}

describe('mcdist datagrams', () => {
  it('have not changed', () => {
    const sealer = new McdistSealer(KEY);
    const header = { ...createMcdistHeader(), type: McdistType.probe, region: 0, page: 0x01020304 };
    const bytes = sealer.seal(header, Buffer.from('a probe'));
    expect(bytes.toString('hex')).toBe(
      '02000000040302010100000000000000c7df374e671511883fbfd524eac50f973fec16abc52655',
    );
    expect(mcdistGroup(KEY)).toBe('239.195.67.167');
  });

  it('carry a page in pieces that come back as they were', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 8 }),
        fc.integer({ min: 0, max: 2 ** 32 - 1 }),
        fc.constantFrom(0, 2),
        (pieces, page, region) => {
          const data = Buffer.alloc(PAGE_BYTES, `page ${page}`);
          const sealer = new McdistSealer(KEY);
          const opener = new McdistOpener(KEY);
          const seen = createMcdistHeader();
          for (let index = 0; index < pieces; index++) {
            const body = piece(data, { index, pieces });
            const header = { type: McdistType.piece, region, piece: index, pieces, page, number: 0 };
            expect(opener.open(sealer.seal(header, body), seen, all)?.equals(body)).toBe(true);
            expect(seen).toEqual({ ...header, number: index + 1 });
          }
        },
      ),
    );
  });

  it('are opened neither with another key nor when one bit is another', () => {
    const header = { ...createMcdistHeader(), type: McdistType.piece, pieces: 1 };
    const bytes = new McdistSealer(KEY).seal(header, Buffer.alloc(PAGE_BYTES, 1));
    expect(new McdistOpener(OTHER_KEY).open(bytes, createMcdistHeader(), all)).toBeUndefined();
    fc.assert(
      fc.property(fc.nat({ max: bytes.length * 8 - 1 }), (bit) => {
        const damaged = Buffer.from(bytes);
        damaged[bit >>> 3] = (damaged[bit >>> 3] ?? 0) ^ (1 << (bit & 7));
        expect(new McdistOpener(KEY).open(damaged, createMcdistHeader(), all)).toBeUndefined();
      }),
    );
  });

  it('are refused by their form before anything is decrypted', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 5000 }), (noise) => {
        const header = createMcdistHeader();
        if (!readMcdistHeader(Buffer.from(noise), header)) return;
        expect(header.piece).toBeLessThanOrEqual(header.type === McdistType.piece ? header.pieces : 255);
        expect(new McdistOpener(KEY).open(Buffer.from(noise), header, all)).toBeUndefined();
      }),
    );
  });

  it('need no fragments when they are cut for an MTU', () => {
    for (const mtu of [576, 1280, 1492, 1500, 4096, 4352, 9000, 65_535])
      expect(pieceBytes(piecesFor(mtu)) + MCDIST_OVERHEAD_BYTES).toBeLessThanOrEqual(mtu);
    expect([576, 1500, 9000].map(piecesFor)).toEqual([8, 3, 1]);
  });
});
