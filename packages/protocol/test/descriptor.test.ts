import * as fc from 'fast-check';
import { zstdCompressSync } from 'node:zlib';
import { expect, it } from 'vitest';
import { decodeDescriptor, encodeDescriptor, SnowflockError, type Descriptor } from '../src/index.ts';

const descriptor: Descriptor = {
  header: {
    clusterid: 1,
    ticket: 'd4d660b0-054e-4017-8393-ad04ff1c1ff7',
    forkId: 0xffffffff,
    nclones: 4,
    held: true,
    isolated: false,
    shape: { diskImage: 'micro', vcpus: 1, memoryMib: 256 },
    source: { address: '10.9.0.1', port: 4000, keyHex: 'ab'.repeat(32) },
    ramBytes: 256 << 20,
    diskBytes: 0,
    prefetch: [7, 5, 6],
  },
  presence: Buffer.from('presence'),
  deviceState: Buffer.alloc(125_000, 'device'),
};
const bytes = encodeDescriptor(descriptor);

it('reads back what was written', () => {
  expect(decodeDescriptor(bytes)).toEqual(descriptor);
  const empty = { ...descriptor, presence: Buffer.alloc(0), deviceState: Buffer.alloc(0) };
  expect(decodeDescriptor(encodeDescriptor(empty))).toEqual(empty);
});

it('refuses whatever is cut, changed or too long with bad-request', () => {
  const refused = (data: Buffer): void => {
    try {
      decodeDescriptor(data);
    } catch (error) {
      expect(error).toBeInstanceOf(SnowflockError);
      expect((error as SnowflockError).code).toBe('bad-request');
      return;
    }
    throw new Error('it was accepted');
  };
  fc.assert(
    fc.property(fc.integer({ min: 0, max: bytes.length - 1 }), (length) =>
      refused(bytes.subarray(0, length)),
    ),
  );
  refused(Buffer.concat([bytes, Buffer.from([0])]));
  refused(Buffer.from('SFD2'));
  const header = zstdCompressSync(Buffer.from(JSON.stringify({ ...descriptor.header, forkId: -1 })));
  const length = Buffer.alloc(4);
  length.writeUInt32LE(header.length);
  refused(Buffer.concat([Buffer.from('SFD1'), length, header, Buffer.alloc(8)]));
});

it('never hangs or crashes on changed bytes', () => {
  fc.assert(
    fc.property(fc.nat(bytes.length - 1), fc.integer({ min: 1, max: 255 }), (at, flip) => {
      const changed = Buffer.from(bytes);
      changed.writeUInt8(changed.readUInt8(at) ^ flip, at);
      try {
        decodeDescriptor(changed);
      } catch (error) {
        expect(error).toBeInstanceOf(SnowflockError);
      }
    }),
  );
});

it('does not unpack a bomb', () => {
  const bomb = zstdCompressSync(Buffer.alloc(64 << 20));
  const length = Buffer.alloc(4);
  length.writeUInt32LE(bomb.length);
  expect(() => decodeDescriptor(Buffer.concat([Buffer.from('SFD1'), length, bomb, Buffer.alloc(8)]))).toThrow(
    'not usable',
  );
});
