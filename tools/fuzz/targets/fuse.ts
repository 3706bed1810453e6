// What the memtap answers to the kernel's requests other than READ, whatever they say.

import {
  answerMetadata,
  FUSE_IN_HEADER,
  FUSE_OUT_HEADER,
  FUSE_REQUEST_BYTES,
  FuseOp,
} from '../../../packages/replication/src/memtap/fuse/protocol.ts';
import type { Target } from '../engine.ts';

const FILES = [
  { name: 'ram', node: 2, sizeBytes: 1 << 28 },
  { name: 'disk', node: 3, sizeBytes: 5_000_000_000 },
];
const OUT_BYTES = 512;
const CANARY = 0xa5;

function request(op: number, body: Buffer | string = ''): Buffer {
  const bytes = Buffer.concat([Buffer.alloc(FUSE_IN_HEADER), Buffer.from(body as string)]);
  bytes.writeUInt32LE(bytes.length, 0);
  bytes.writeUInt32LE(op, 4);
  bytes.writeUInt32LE(1, 16);
  return bytes;
}

export const target: Target = {
  name: 'fuse',
  maxBytes: FUSE_REQUEST_BYTES,
  seeds: [
    request(FuseOp.lookup, 'ram\0'),
    request(FuseOp.lookup, 'disk\0'),
    request(FuseOp.init, Buffer.alloc(64, 7)),
    ...[FuseOp.getattr, FuseOp.open, FuseOp.opendir, FuseOp.statfs, FuseOp.readdir, FuseOp.write, 99].map(
      (op) => request(op),
    ),
  ],
  dictionary: ['ram\0', 'disk\0', '../\0'],
  run(input) {
    const buffer = Buffer.alloc(FUSE_REQUEST_BYTES);
    input.copy(buffer);
    const out = Buffer.alloc(OUT_BYTES, CANARY);
    const length = answerMetadata(buffer, out, FILES);
    if (length < FUSE_OUT_HEADER || length > OUT_BYTES || out.readUInt32LE(0) !== length)
      throw new Error(`an answer of ${length} bytes says that it has ${out.readUInt32LE(0)}`);
    const error = out.readInt32LE(4);
    if (error > 0 || error < -133 || (error !== 0 && length !== FUSE_OUT_HEADER))
      throw new Error(`error ${error}, length ${length}`);
    if (!out.subarray(8, 16).equals(buffer.subarray(8, 16)))
      throw new Error('the answer is to another request');
    if (out.subarray(FUSE_OUT_HEADER + 128).some((byte) => byte !== CANARY))
      throw new Error('bytes behind the answer were written');
  },
};
