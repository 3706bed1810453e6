// The descriptor: what a clone's host needs to start it, without its memory (DESIGN step 5; the original's "VM descriptor").
//
//   magic "SFD1" | u32 header length | header (JSON, zstd) | u32 presence length | presence map | u32 device length | device state (zstd)
//
// All integers little-endian. The presence map is opaque here (packages/replication owns its encoding).

import { constants, zstdCompressSync, zstdDecompressSync } from 'node:zlib';
import { z } from 'zod';
import { ticketId, VmShape } from './control.ts';
import { SnowflockError } from './errors.ts';

const MAGIC = 'SFD1';
/** Caps on each decompressed part, against a forged descriptor. Device state is about 125 KB for q35. */
const HEADER_MAX_BYTES = 1 << 20;
const DEVICE_MAX_BYTES = 16 << 20;
const PRESENCE_MAX_BYTES = 64 << 20;
export const DESCRIPTOR_MAX_BYTES = HEADER_MAX_BYTES + DEVICE_MAX_BYTES + PRESENCE_MAX_BYTES;

/** Bounds what a descriptor can make a memtap fetch unasked. */
const PREFETCH_PAGES_MAX = 4096;
const CHANNEL_CALLS_MAX = 64;
/** A map that is longer says of a huge memory that it has changed everywhere, and is not worth sending. */
export const UNCHANGED_MAX_CHARACTERS = 256 * 1024;

const SessionId = z.int().min(0).max(0xffffffff);

export const DescriptorHeader = z.object({
  clusterid: z.int(),
  ticket: ticketId,
  /** Id of the clone_master call in the guest: the id of the identity frame that answers it. */
  forkId: z.int().min(0).max(0xffffffff),
  nclones: z.int(),
  /** The guest was held, and waits for its identity; false: it knows nothing of SnowFlock. */
  held: z.boolean(),
  /** Clones never join the network. */
  isolated: z.boolean(),
  shape: VmShape,
  /** Where pages are served, and the fork's key (hex) that both sides prove to know. */
  source: z.object({
    address: z.string(),
    port: z.int().min(1).max(65535),
    keyHex: z.string().regex(/^[0-9a-f]{64}$/),
  }),
  ramBytes: z.int().min(1),
  diskBytes: z.int().min(0),
  /** Of a VM that comes itself, with its guest channel: what its guest waits for, and has yet to be sent. */
  channel: z
    .object({
      /** Calls to be made again, as they came. */
      calls: z.array(z.object({ id: z.int(), line: z.string() })).max(CHANNEL_CALLS_MAX),
      /** Calls that cannot be; of `cutData` the reply has begun. */
      cut: z.array(z.int()).max(CHANNEL_CALLS_MAX),
      cutData: z.array(z.int()).max(CHANNEL_CALLS_MAX),
      /** Whole frames, base64. */
      queued: z.string(),
      /** Ids of exec sessions that were used. */
      execIds: z.int().min(0),
      /** Clients with commands that run: the token that each comes back with, and its sessions as ids: the client's, the guest's. */
      execClients: z.array(z.object({ token: z.uuid(), sessions: z.array(z.tuple([SessionId, SessionId])) })),
    })
    .optional(),
  /** Of a VM that comes itself: the token that the client of its serial console comes back with. */
  consoleToken: z.uuid().optional(),
  /** RAM pages that have not changed since an earlier fork of this VM, under that one's ticket: a presence map, base64. */
  unchanged: z.object({ ticket: ticketId, pages: z.string().max(UNCHANGED_MAX_CHARACTERS) }).optional(),
  /** RAM pages that clones of this VM needed first at its last forks, in that order: worth having before they are asked for. */
  prefetch: z.array(z.int().min(0)).max(PREFETCH_PAGES_MAX),
});
export type DescriptorHeader = z.infer<typeof DescriptorHeader>;
export type ChannelState = NonNullable<DescriptorHeader['channel']>;

export interface Descriptor {
  readonly header: DescriptorHeader;
  readonly presence: Buffer;
  readonly deviceState: Buffer;
}

const LEVEL = { params: { [constants.ZSTD_c_compressionLevel]: 1 } };

export function encodeDescriptor(descriptor: Descriptor): Buffer {
  const parts = [
    zstdCompressSync(Buffer.from(JSON.stringify(descriptor.header)), LEVEL),
    descriptor.presence,
    zstdCompressSync(descriptor.deviceState, LEVEL),
  ];
  const chunks: Buffer[] = [Buffer.from(MAGIC)];
  for (const part of parts) {
    const length = Buffer.alloc(4);
    length.writeUInt32LE(part.length);
    chunks.push(length, part);
  }
  return Buffer.concat(chunks);
}

export function decodeDescriptor(bytes: Buffer): Descriptor {
  const fail = (what: string, cause?: unknown): never => {
    throw new SnowflockError('bad-request', `descriptor is not usable: ${what}`, { cause });
  };
  if (bytes.length < 4 || bytes.toString('latin1', 0, 4) !== MAGIC) fail('wrong magic');
  let offset = 4;
  const next = (name: string, cap: number): Buffer => {
    if (offset + 4 > bytes.length) fail(`truncated before ${name}`);
    const length = bytes.readUInt32LE(offset);
    offset += 4;
    if (length > cap || offset + length > bytes.length) fail(`${name} of ${length} bytes does not fit`);
    offset += length;
    return bytes.subarray(offset - length, offset);
  };
  const headerBytes = next('header', HEADER_MAX_BYTES);
  const presence = next('presence map', PRESENCE_MAX_BYTES);
  const deviceBytes = next('device state', DEVICE_MAX_BYTES);
  if (offset !== bytes.length) fail(`${bytes.length - offset} bytes too long`);
  try {
    const header = DescriptorHeader.parse(
      JSON.parse(zstdDecompressSync(headerBytes, { maxOutputLength: HEADER_MAX_BYTES }).toString()),
    );
    const deviceState = zstdDecompressSync(deviceBytes, { maxOutputLength: DEVICE_MAX_BYTES });
    return { header, presence, deviceState };
  } catch (error) {
    return fail(error instanceof Error ? error.message : String(error), error);
  }
}
