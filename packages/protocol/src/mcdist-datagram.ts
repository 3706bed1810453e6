// Datagrams of mcdist: pages of one fork, sent by its memserver to all of the fork's hosts at once (docs/mcdist.md).
//
//   0 u8 type   1 u8 region   2 u8 piece   3 u8 pieces   4 u32 page   8 u64 number   16 body, encrypted   then 16 bytes of tag
//
//   PIECE  one of the `pieces` parts of a page. All parts but the last have ceil(4096 / pieces) bytes.
//   PROBE  zeros that make the datagram as long as the longest PIECE will be: whoever gets one gets the others, too.
//
// AES-256-GCM with a key that only this fork has; the first 16 bytes are authenticated, the number is the nonce. There is one sender
// to a key, the memserver of the snapshot, and it uses each number once. Multicast may reach every machine of a network, so what it
// carries is encrypted.
//
// A page goes whole, as fragments of IP where the MTU asks for them, as long as no receiver loses packets: a datagram costs both ends the
// same whatever its length. Where packets are lost, pieces are cut so that none is fragmented: a lost fragment costs the whole datagram and
// leaves the rest of it in the receiver's reassembly queue for 30 s; at a few per cent of loss that queue is full within a second.

import { createCipheriv, createDecipheriv, createHmac, createSecretKey, type KeyObject } from 'node:crypto';
import { PAGE_BYTES, PageRegion } from './page-wire.ts';

export const MCDIST_HEADER_BYTES = 16;
const TAG_BYTES = 16;
/** What a datagram adds to its body, IPv4 and UDP headers included. */
export const MCDIST_OVERHEAD_BYTES = MCDIST_HEADER_BYTES + TAG_BYTES + 28;
/** The least MTU of IPv4 that one may count on (RFC 791), and how many pieces a page then has. */
export const MCDIST_MTU_MIN = 576;
export const MCDIST_MAX_PIECES = 8;
/** As the ports of sfmd and sfld, in the manual's row. */
export const MCDIST_PORT = 0xf10d;

export const McdistType = { piece: 1, probe: 2 } as const;
export type McdistType = (typeof McdistType)[keyof typeof McdistType];

/** A datagram's header. Mutable and reused by its owner. */
export interface McdistHeader {
  type: number;
  region: number;
  piece: number;
  pieces: number;
  page: number;
  /** Of this datagram; the sender counts up from 1. */
  number: number;
}

export function createMcdistHeader(): McdistHeader {
  return { type: 0, region: 0, piece: 0, pieces: 0, page: 0, number: 0 };
}

/** In how many pieces a page has to be sent where the longest packet has `mtuBytes`. */
export function piecesFor(mtuBytes: number): number {
  const room = Math.max(mtuBytes, MCDIST_MTU_MIN) - MCDIST_OVERHEAD_BYTES;
  return Math.ceil(PAGE_BYTES / room);
}

/** Bytes of every piece of a page but the last. */
export function pieceBytes(pieces: number): number {
  return Math.ceil(PAGE_BYTES / pieces);
}

/** Of a page that is sent whole: the length of its packet, or of what fragments of IP are put together to. */
export const MCDIST_WHOLE_PAGE_BYTES = PAGE_BYTES + MCDIST_OVERHEAD_BYTES;

/** Where the group of a fork is found: site-local (RFC 2365), and another one for almost every other fork. */
export function mcdistGroup(key: Buffer): string {
  const hash = derive(key, 'group');
  return `239.${192 + ((hash[0] ?? 0) & 3)}.${hash[1] ?? 0}.${hash[2] ?? 0}`;
}

function derive(key: Buffer, what: string): Buffer {
  return createHmac('sha256', key).update(`snowflock mcdist 1 ${what}\n`).digest();
}

/** As an object: a cipher that is made with the bytes of its key takes four times as long in Node 24, which tries two kinds of objects first. */
function cipherKey(key: Buffer): KeyObject {
  return createSecretKey(derive(key, 'key'));
}

export class McdistSealer {
  readonly #key: KeyObject;
  readonly #nonce = Buffer.alloc(12);
  #number = 0;

  constructor(key: Buffer) {
    this.#key = cipherKey(key);
  }

  /** Of the last datagram that was made. */
  get number(): number {
    return this.#number;
  }

  /** Makes the next datagram. `header.number` is set here. */
  seal(header: McdistHeader, body: Buffer): Buffer {
    this.#number++;
    header.number = this.#number;
    const out = Buffer.allocUnsafe(MCDIST_HEADER_BYTES + body.length + TAG_BYTES);
    out[0] = header.type;
    out[1] = header.region;
    out[2] = header.piece;
    out[3] = header.pieces;
    out.writeUInt32LE(header.page, 4);
    out.writeUInt32LE(header.number % 2 ** 32, 8);
    out.writeUInt32LE(Math.floor(header.number / 2 ** 32), 12);
    out.copy(this.#nonce, 0, 8, 16);
    const cipher = createCipheriv('aes-256-gcm', this.#key, this.#nonce, { authTagLength: TAG_BYTES });
    cipher.setAAD(out.subarray(0, MCDIST_HEADER_BYTES));
    cipher.update(body).copy(out, MCDIST_HEADER_BYTES);
    cipher.final();
    cipher.getAuthTag().copy(out, out.length - TAG_BYTES);
    return out;
  }
}

export class McdistOpener {
  readonly #key: KeyObject;
  readonly #nonce = Buffer.alloc(12);

  constructor(key: Buffer) {
    this.#key = cipherKey(key);
  }

  /**
   * Reads the header into `header` and returns the body, or undefined for what the fork's memserver did not send. `wanted` is asked
   * before anything is decrypted; what it sees may still be a lie.
   */
  open(bytes: Buffer, header: McdistHeader, wanted: (header: McdistHeader) => boolean): Buffer | undefined {
    if (!readMcdistHeader(bytes, header) || !wanted(header)) return undefined;
    bytes.copy(this.#nonce, 0, 8, 16);
    const decipher = createDecipheriv('aes-256-gcm', this.#key, this.#nonce, { authTagLength: TAG_BYTES });
    decipher.setAAD(bytes.subarray(0, MCDIST_HEADER_BYTES));
    decipher.setAuthTag(bytes.subarray(bytes.length - TAG_BYTES));
    const body = decipher.update(bytes.subarray(MCDIST_HEADER_BYTES, bytes.length - TAG_BYTES));
    try {
      decipher.final();
    } catch {
      return undefined; // somebody else's, or damaged: as good as lost
    }
    return body;
  }
}

/** Whether `bytes` has the form of a datagram; its header is then in `header`. */
export function readMcdistHeader(bytes: Buffer, header: McdistHeader): boolean {
  const bodyBytes = bytes.length - MCDIST_HEADER_BYTES - TAG_BYTES;
  if (bodyBytes < 0) return false;
  header.type = bytes[0] ?? 0;
  header.region = bytes[1] ?? 0;
  header.piece = bytes[2] ?? 0;
  header.pieces = bytes[3] ?? 0;
  header.page = bytes.readUInt32LE(4);
  const high = bytes.readUInt32LE(12);
  header.number = bytes.readUInt32LE(8) + high * 2 ** 32;
  if (high >= 2 ** 21 || header.number === 0) return false;
  const { type, region, piece, pieces } = header;
  if (type === McdistType.probe) return true;
  if (type !== McdistType.piece || region > PageRegion.disk) return false;
  if (pieces < 1 || pieces > MCDIST_MAX_PIECES || piece >= pieces) return false;
  const start = piece * pieceBytes(pieces);
  return bodyBytes === Math.min(pieceBytes(pieces), PAGE_BYTES - start);
}
