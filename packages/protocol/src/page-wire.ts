// The page wire: how a memtap fetches pages of a frozen VM from a memserver, over one TCP connection (a 'lane').
//
//   server                                    client
//     | --- hello:   magic, server nonce --->   |
//     | <-- proof:   client nonce, MAC ------   |   MAC = HMAC-SHA256(key, 'client' | server nonce | client nonce)
//     | --- welcome: MAC ------------------->   |   MAC = HMAC-SHA256(key, 'server' | server nonce | client nonce)
//     | <== READ, PING, REPORT, FOLLOW  FROZEN, DATA, SPLIT, ERROR, PONG, NEEDED ==>
//
// After the handshake everything is a frame: a fixed header of PAGE_FRAME_HEADER_BYTES, little-endian, then a body.
//
//   0 u32 length (header and body)   4 u8 type    5 u8 region    6 u8 flags or error code   7 u8 zero
//   8 u16 pageCount   10 u16 dataPages (DATA, SPLIT, else 0)   12 u32 requestId   16 u32 firstPage
//
//   READ   no body. `flags` bit 0: somebody waits for it (served before what only might be needed); bit 1: the client hears
//          the fork's multicast, so the answer may be a SPLIT; bit 2: what it was to hear did not come; bit 3: the link is
//          narrow, and the answer's pages may be compressed.
//   DATA   a bitmap of pageCount bits (bit set: the page's 4096 bytes follow; clear: the page is all zero), padded to
//          four bytes, then dataPages pages in order. `flags` bit 0: they are one block of zstd (compressed-pages.ts).
//   SPLIT  a bitmap as in DATA, another one of pages that went to everyone by multicast (docs/mcdist.md), u32 the low half of
//          the number of the last datagram sent, then the dataPages pages of the first bitmap. In neither: all zero.
//   REPORT no body; what the client got by multicast since its last REPORT: requestId bytes, in firstPage microseconds;
//          pageCount: bytes of the longest packet that it ever got so, 0: it hears nothing (and the memserver sends a probe).
//   FOLLOW no body; the client wants to hear of so many (firstPage) more pages that others needed.
//   NEEDED no body; others needed these pages of the RAM, in the order of these frames. `flags` bit 0: clones of an earlier fork did.
//   ERROR  no body; `flags` is a PageErrorCode; answers the READ with the same requestId.
//   PING, PONG  no body; PONG repeats the requestId.
//   FROZEN no body; sent once on each lane, as soon as there is a snapshot: READ is refused before it, except of the
//          rehearsal region, whose pages mean nothing: with them both ends run all their code once ahead of the fork.
//
// Invariant: nothing is allocated for a length before that length was checked, and a frame's length is a function of its
// other header fields, or less if it is compressed, so a frame that lies about its size is refused when its header arrives.

import { createHmac, timingSafeEqual } from 'node:crypto';
import { SnowflockError } from './errors.ts';

/** The unit of replication in bytes; x86-64's small page. */
export const PAGE_BYTES = 4096;
/** Most pages one READ may ask for: 1 MiB, what the kernel asks of a FUSE server at most. */
export const PAGE_WIRE_MAX_PAGES = 256;
export const PAGE_FRAME_HEADER_BYTES = 20;
/** Largest frame: a SPLIT frame with every page in it. */
export const PAGE_FRAME_MAX_BYTES =
  PAGE_FRAME_HEADER_BYTES + 2 * (PAGE_WIRE_MAX_PAGES / 8) + 4 + PAGE_WIRE_MAX_PAGES * PAGE_BYTES;

export const PageFrameType = {
  read: 1,
  data: 2,
  error: 3,
  ping: 4,
  pong: 5,
  frozen: 6,
  split: 7,
  report: 8,
  follow: 9,
  needed: 10,
} as const;
export type PageFrameType = (typeof PageFrameType)[keyof typeof PageFrameType];

export const PageRegion = { ram: 0, rehearsal: 1, disk: 2 } as const;
export type PageRegion = (typeof PageRegion)[keyof typeof PageRegion];

/** Pages of the rehearsal region: 16 MiB. */
export const REHEARSAL_PAGES = 4096;

/** READ flag: a guest waits for these pages. */
export const PAGE_FLAG_URGENT = 1;
/** READ flag: the answer may be a SPLIT. */
export const PAGE_FLAG_MULTICAST = 2;
/** READ flag: these pages were to come by multicast and did not. */
export const PAGE_FLAG_MISSED = 4;
/** READ flag: the answer may be compressed. */
export const PAGE_FLAG_COMPRESSIBLE = 8;
/** NEEDED flag: clones of an earlier fork needed them. */
export const PAGE_FLAG_EARLIER = 1;
/** DATA flag: its pages are compressed. */
export const PAGE_FLAG_COMPRESSED = 1;

/** Why a READ failed. Closed: a peer that sends another is in breach of the protocol. */
export const PageErrorCode = { sourceLost: 1, outOfRange: 2, noRegion: 3, notFrozen: 4, io: 5 } as const;
export type PageErrorCode = (typeof PageErrorCode)[keyof typeof PageErrorCode];
const ERROR_CODE_MAX = 5;

/** One frame's header. Mutable and reused by its owner, so that the data path allocates nothing per frame. */
export interface PageFrame {
  length: number;
  type: number;
  region: number;
  /** READ, DATA: flags. ERROR: PageErrorCode. Otherwise 0. */
  flags: number;
  pageCount: number;
  dataPages: number;
  requestId: number;
  firstPage: number;
}

export function createPageFrame(): PageFrame {
  return { length: 0, type: 0, region: 0, flags: 0, pageCount: 0, dataPages: 0, requestId: 0, firstPage: 0 };
}

/** Bytes of the zero bitmap of a DATA frame, padding included. */
export function pageBitmapBytes(pageCount: number): number {
  return ((pageCount + 31) >>> 5) << 2;
}

/** Offset of the first page's data within a DATA frame. */
export function pageDataOffset(pageCount: number): number {
  return PAGE_FRAME_HEADER_BYTES + pageBitmapBytes(pageCount);
}

/** The same of a SPLIT frame. */
export function splitDataOffset(pageCount: number): number {
  return pageDataOffset(pageCount) + pageBitmapBytes(pageCount) + 4;
}

/** Whether a frame's pages are to be unpacked before they can be used. */
export function isCompressed({ type, flags }: Readonly<PageFrame>): boolean {
  return type === PageFrameType.data && (flags & PAGE_FLAG_COMPRESSED) !== 0;
}

/** The length that the frame's other fields imply; of a compressed one, what it has to be less than. */
function impliedLength(frame: Readonly<PageFrame>): number {
  const { type, pageCount, dataPages } = frame;
  if (type === PageFrameType.data) return pageDataOffset(pageCount) + dataPages * PAGE_BYTES;
  if (type === PageFrameType.split) return splitDataOffset(pageCount) + dataPages * PAGE_BYTES;
  return PAGE_FRAME_HEADER_BYTES;
}

/**
 * Writes the frame's header at `offset`, computing its length, unless it is compressed. Returns the offset after the header.
 */
export function writePageFrame(buffer: Buffer, offset: number, frame: PageFrame): number {
  if (!isCompressed(frame)) frame.length = impliedLength(frame);
  buffer.writeUInt32LE(frame.length, offset);
  buffer[offset + 4] = frame.type;
  buffer[offset + 5] = frame.region;
  buffer[offset + 6] = frame.flags;
  buffer[offset + 7] = 0;
  buffer.writeUInt16LE(frame.pageCount, offset + 8);
  buffer.writeUInt16LE(frame.dataPages, offset + 10);
  buffer.writeUInt32LE(frame.requestId >>> 0, offset + 12);
  buffer.writeUInt32LE(frame.firstPage >>> 0, offset + 16);
  return offset + PAGE_FRAME_HEADER_BYTES;
}

/**
 * Reads the header at `offset` of the `end - offset` bytes there are into `frame`.
 * Returns false when the header is not complete yet; the body may still be on its way (compare `frame.length`).
 * Throws 'bad-request' on what no honest peer sends; the connection is then unusable.
 */
export function readPageFrame(buffer: Buffer, offset: number, end: number, frame: PageFrame): boolean {
  if (end - offset < PAGE_FRAME_HEADER_BYTES) return false;
  frame.length = buffer.readUInt32LE(offset);
  frame.type = buffer[offset + 4] ?? 0;
  frame.region = buffer[offset + 5] ?? 0;
  frame.flags = buffer[offset + 6] ?? 0;
  frame.pageCount = buffer.readUInt16LE(offset + 8);
  frame.dataPages = buffer.readUInt16LE(offset + 10);
  frame.requestId = buffer.readUInt32LE(offset + 12);
  frame.firstPage = buffer.readUInt32LE(offset + 16);
  checkFrame(frame, buffer[offset + 7] ?? 0);
  return true;
}

function checkFrame(frame: PageFrame, reserved: number): void {
  const { type, region, pageCount, dataPages, flags } = frame;
  if (type < PageFrameType.read || type > PageFrameType.needed) throw breach(`type ${type} is unknown`);
  if (reserved !== 0) throw breach('the reserved byte is not zero');
  if (!hasFittingLength(frame)) throw breach(`length ${frame.length} does not fit its fields`);
  const answer = type === PageFrameType.data || type === PageFrameType.split;
  const paged = answer || type === PageFrameType.read || type === PageFrameType.needed;
  if (paged && (pageCount < 1 || pageCount > PAGE_WIRE_MAX_PAGES)) throw breach(`${pageCount} pages`);
  if (paged && frame.firstPage + pageCount > 2 ** 32) throw breach('its pages pass the end of the region');
  if (paged && region > PageRegion.disk) throw breach(`region ${region} is unknown`);
  if (dataPages > pageCount || (!answer && dataPages !== 0)) throw breach('too many data pages');
  if (type === PageFrameType.data && flags > PAGE_FLAG_COMPRESSED) throw breach(`flags ${flags}`);
  if (type === PageFrameType.error && (flags < 1 || flags > ERROR_CODE_MAX))
    throw breach(`error code ${flags}`);
}

function hasFittingLength(frame: Readonly<PageFrame>): boolean {
  const implied = impliedLength(frame);
  if (!isCompressed(frame)) return frame.length === implied;
  return frame.length > pageDataOffset(frame.pageCount) && frame.length < implied;
}

/**
 * Checks a complete DATA or SPLIT frame's bitmap against its count of data pages, that no bit stands behind its last page, and that
 * no page is in both bitmaps. Throws 'bad-request'.
 */
export function checkPageBitmap(buffer: Buffer, offset: number, frame: PageFrame): void {
  const at = offset + PAGE_FRAME_HEADER_BYTES;
  const bitmapBytes = pageBitmapBytes(frame.pageCount);
  const split = frame.type === PageFrameType.split;
  let bits = 0;
  for (let word = 0; word < bitmapBytes; word += 4) {
    const value = buffer.readUInt32LE(at + word);
    const elsewhere = split ? buffer.readUInt32LE(at + bitmapBytes + word) : 0;
    const left = frame.pageCount - word * 8;
    if (left < 32 && (value | elsewhere) >>> left !== 0) throw breach('bits behind the last page');
    if ((value & elsewhere) !== 0) throw breach('a page is in both bitmaps');
    bits += popcount(value);
  }
  if (bits !== frame.dataPages) throw breach(`${bits} pages in the bitmap, ${frame.dataPages} in the frame`);
}

export function hasPageData(buffer: Buffer, offset: number, index: number): boolean {
  return (((buffer[offset + PAGE_FRAME_HEADER_BYTES + (index >>> 3)] ?? 0) >>> (index & 7)) & 1) === 1;
}

/** Whether a page of a SPLIT frame was sent to everyone. */
export function isMulticastPage(buffer: Buffer, offset: number, frame: PageFrame, index: number): boolean {
  if (frame.type !== PageFrameType.split) return false;
  return hasPageData(buffer, offset + pageBitmapBytes(frame.pageCount), index);
}

/** Number of the last datagram that was sent before a SPLIT frame, its low 32 bits. */
export function splitLastNumber(buffer: Buffer, offset: number, pageCount: number): number {
  return buffer.readUInt32LE(offset + splitDataOffset(pageCount) - 4);
}

function popcount(value: number): number {
  let v = value - ((value >>> 1) & 0x55555555);
  v = (v & 0x33333333) + ((v >>> 2) & 0x33333333);
  return Math.imul((v + (v >>> 4)) & 0x0f0f0f0f, 0x01010101) >>> 24;
}

function breach(what: string): SnowflockError {
  return new SnowflockError('bad-request', `page wire: a frame in breach of the protocol: ${what}`);
}

// The handshake. Both sides prove that they hold the fork's key without sending it; fresh nonces on both sides make a
// recording useless, the label makes a reflected answer useless.

export const PAGE_KEY_BYTES = 32;
export const PAGE_NONCE_BYTES = 32;
export const PAGE_MAC_BYTES = 32;
/** A peer that has not proved itself by then is dropped. */
export const PAGE_HANDSHAKE_TIMEOUT_MS = 5000;
const MAGIC = Buffer.from('SFPAGE01', 'latin1');
export const PAGE_HELLO_BYTES = MAGIC.length + PAGE_NONCE_BYTES;
export const PAGE_PROOF_BYTES = PAGE_NONCE_BYTES + PAGE_MAC_BYTES;
export const PAGE_WELCOME_BYTES = PAGE_MAC_BYTES;

export interface PageNonces {
  readonly server: Buffer;
  readonly client: Buffer;
}

export function pageProof(key: Buffer, side: 'client' | 'server', nonces: PageNonces): Buffer {
  return createHmac('sha256', key)
    .update(`snowflock page wire 1 ${side}\n`)
    .update(nonces.server)
    .update(nonces.client)
    .digest();
}

export function checkPageProof(
  proof: Buffer,
  key: Buffer,
  side: 'client' | 'server',
  nonces: PageNonces,
): boolean {
  const expected = pageProof(key, side, nonces);
  return proof.length === expected.length && timingSafeEqual(proof, expected);
}

export function encodePageHello(serverNonce: Buffer): Buffer {
  return Buffer.concat([MAGIC, serverNonce]);
}

/** The server's nonce, a copy. Throws 'bad-request' when the peer speaks something else. */
export function decodePageHello(hello: Buffer): Buffer {
  if (hello.length !== PAGE_HELLO_BYTES || !hello.subarray(0, MAGIC.length).equals(MAGIC))
    throw breach('no page wire hello');
  return Buffer.from(hello.subarray(MAGIC.length));
}
