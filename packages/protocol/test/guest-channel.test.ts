import * as fc from 'fast-check';
import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { encodeGuestFrame, GUEST_PAYLOAD_MAX, GuestFrameDecoder, GuestFrameType } from '../src/index.ts';

interface Vectors {
  readonly frames: readonly {
    name: string;
    type: GuestFrameType;
    id: number;
    payloadHex: string;
    hex: string;
  }[];
  readonly broken: readonly { name: string; hex: string }[];
}
const vectors = JSON.parse(
  readFileSync(new URL('../vectors/guest-channel.json', import.meta.url), 'utf8'),
) as Vectors;
const types = Object.values(GuestFrameType);

describe('the guest channel, as in the vectors shared with guest/c', () => {
  it.each(vectors.frames)('encodes and decodes: $name', ({ type, id, payloadHex, hex }) => {
    const payload = Buffer.from(payloadHex, 'hex');
    expect(encodeGuestFrame({ type, id, payload }).toString('hex')).toBe(hex);
    const decoder = new GuestFrameDecoder();
    expect(decoder.push(Buffer.from(hex, 'hex'))).toEqual([{ type, id, payload }]);
    expect(decoder.idle).toBe(true);
  });

  it('has a vector for every frame type', () => {
    expect(new Set(vectors.frames.map((frame) => frame.type))).toEqual(new Set(types));
  });

  it.each(vectors.broken)('drops the link: $name', ({ hex }) => {
    expect(() => new GuestFrameDecoder().push(Buffer.from(hex, 'hex'))).toThrow('guest frame');
  });
});

it('reads back frames however the stream is cut', () => {
  const frame = fc.record({
    type: fc.constantFrom(...types),
    id: fc.integer({ min: 0, max: 0xffffffff }),
    payload: fc.uint8Array({ maxLength: 300 }).map((bytes) => Buffer.from(bytes)),
  });
  fc.assert(
    fc.property(
      fc.array(frame, { maxLength: 8 }),
      fc.array(fc.integer({ min: 1, max: 64 })),
      (frames, cuts) => {
        const stream = Buffer.concat(frames.map(encodeGuestFrame));
        const decoder = new GuestFrameDecoder();
        const read = [];
        let offset = 0;
        for (const cut of cuts) {
          read.push(...decoder.push(stream.subarray(offset, offset + cut)));
          offset = Math.min(offset + cut, stream.length);
        }
        read.push(...decoder.push(stream.subarray(offset)));
        expect(read).toEqual(frames);
        expect(decoder.idle).toBe(true);
      },
    ),
  );
});

it('caps payloads on both sides', () => {
  const payload = Buffer.alloc(GUEST_PAYLOAD_MAX);
  expect(new GuestFrameDecoder().push(encodeGuestFrame({ type: 2, id: 1, payload }))).toHaveLength(1);
  expect(() => encodeGuestFrame({ type: 2, id: 1, payload: Buffer.alloc(GUEST_PAYLOAD_MAX + 1) })).toThrow(
    '65536',
  );
});
