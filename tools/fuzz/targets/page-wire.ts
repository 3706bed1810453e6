// What one host may send another in a fork: page frames, presence maps, descriptors. The first byte says which.

import { zstdCompressSync } from 'node:zlib';
import {
  checkPageBitmap,
  createPageFrame,
  decompressPages,
  decodeDescriptor,
  decodePageHello,
  encodeDescriptor,
  encodePageHello,
  isCompressed,
  PAGE_BYTES,
  PAGE_FLAG_COMPRESSED,
  PAGE_FRAME_HEADER_BYTES,
  PAGE_FRAME_MAX_BYTES,
  PageFrameType,
  PAGE_NONCE_BYTES,
  pageDataOffset,
  readPageFrame,
  SnowflockError,
  writePageFrame,
} from '@snowflock/protocol';
import { PresenceMap } from '@snowflock/replication';
import type { Target } from '../engine.ts';

const MAX_PAGES = 1 << 20;

function frameBytes(type: number, fields: object): Buffer {
  const frame = Object.assign(createPageFrame(), { type, ...fields });
  const bytes = Buffer.alloc(PAGE_FRAME_HEADER_BYTES + 36);
  writePageFrame(bytes, 0, frame);
  return bytes;
}

function compressedFrame(dataPages: number): Buffer {
  const head = pageDataOffset(dataPages);
  const block = zstdCompressSync(Buffer.alloc(dataPages * PAGE_BYTES, 'page'));
  const length = head + block.length;
  const fields = { type: PageFrameType.data, flags: PAGE_FLAG_COMPRESSED, pageCount: dataPages, dataPages };
  const bytes = Buffer.alloc(length);
  writePageFrame(bytes, 0, { ...createPageFrame(), ...fields, length });
  bytes[PAGE_FRAME_HEADER_BYTES] = 2 ** dataPages - 1;
  block.copy(bytes, head);
  return bytes;
}

function seed(kind: number, bytes: Buffer): Buffer {
  return Buffer.concat([Buffer.from([kind]), bytes]);
}

const presence = new PresenceMap(64);
for (const page of [3, 4, 5, 40]) presence.set(page);
const descriptor = encodeDescriptor({
  header: {
    ...{
      clusterid: 0,
      ticket: 'd4d660b0-054e-4017-8393-ad04ff1c1ff7',
      forkId: 1,
      nclones: 2,
      held: true,
      isolated: false,
      ramBytes: 1 << 25,
      diskBytes: 0,
    },
    shape: { diskImage: 'micro', vcpus: 1, memoryMib: 32 },
    source: { address: '10.0.0.1', port: 4000, keyHex: '00'.repeat(32) },
    prefetch: [],
  },
  presence: presence.encode(),
  deviceState: Buffer.from('QEVM'),
});

const KINDS = [readFrame, readHello, readPresence, readDescriptor] as const;

export const target: Target = {
  name: 'page-wire',
  maxBytes: 4096,
  seeds: [
    seed(0, frameBytes(PageFrameType.read, { pageCount: 8, requestId: 5, firstPage: 77, flags: 1 })),
    seed(0, frameBytes(PageFrameType.data, { pageCount: 3, dataPages: 0 })),
    seed(0, compressedFrame(1)),
    seed(0, compressedFrame(3)),
    seed(0, frameBytes(PageFrameType.split, { pageCount: 3, dataPages: 0 })),
    seed(0, frameBytes(PageFrameType.error, { flags: 2 })),
    seed(0, frameBytes(PageFrameType.ping, {})),
    seed(1, encodePageHello(Buffer.alloc(PAGE_NONCE_BYTES, 3))),
    seed(2, presence.encode()),
    seed(3, descriptor),
  ],
  dictionary: ['SFPAGE01', '"nclones":', '"keyHex":"', '{}', '[]', 'null', '-1', '1e99'],
  run(input) {
    const kind = KINDS[(input[0] ?? 0) % KINDS.length] ?? readFrame;
    try {
      kind(input.subarray(1));
    } catch (error) {
      if (!(error instanceof SnowflockError) || error.code === 'internal') throw error;
    }
  },
};

const unpacked = Buffer.alloc(PAGE_FRAME_MAX_BYTES);

function readFrame(bytes: Buffer): void {
  const frame = createPageFrame();
  if (!readPageFrame(bytes, 0, bytes.length, frame)) return;
  if (frame.length > PAGE_FRAME_MAX_BYTES) throw new Error(`a frame of ${frame.length} bytes was accepted`);
  const again = Buffer.alloc(PAGE_FRAME_HEADER_BYTES);
  writePageFrame(again, 0, frame);
  if (!again.equals(bytes.subarray(0, PAGE_FRAME_HEADER_BYTES)))
    throw new Error('a header means something else when written');
  const answer = frame.type === PageFrameType.data || frame.type === PageFrameType.split;
  if (!answer || bytes.length < frame.length) return;
  checkPageBitmap(bytes, 0, frame);
  if (!isCompressed(frame)) return;
  decompressPages(unpacked, frame, bytes, 0);
  readPageFrame(unpacked, 0, unpacked.length, frame);
  checkPageBitmap(unpacked, 0, frame);
}

function readHello(bytes: Buffer): void {
  if (decodePageHello(bytes).length !== PAGE_NONCE_BYTES) throw new Error('a nonce of another length');
}

function readPresence(bytes: Buffer): void {
  const map = PresenceMap.decode(bytes, { maxPages: MAX_PAGES });
  if (map.pageCount > MAX_PAGES) throw new Error('a map beyond its limit was accepted');
  if (!PresenceMap.decode(map.encode(), { maxPages: MAX_PAGES }).encode().equals(map.encode()))
    throw new Error('a map means something else when written');
}

function readDescriptor(bytes: Buffer): void {
  const decoded = decodeDescriptor(bytes);
  decodeDescriptor(encodeDescriptor(decoded));
}
