// A page file: the pages of one region (RAM, disk) of a checkpoint that are not zero, each with its checksum
// (docs/checkpoint-format.md).
//
//   header, 4096 bytes │ pages, 4096 bytes each, in page order │ presence map │ CRC-32 of each page, u32
//
// header, little-endian:
//    0  'SFPAGES1'                     20 u32 CRC-32 of the presence map
//    8 u32 pages of the region         24 u32 CRC-32 of the checksums
//   12 u32 pages in the file           28    16 bytes: id of the checkpoint
//   16 u32 bytes of the presence map   44 u32 CRC-32 of bytes 0 to 43; zeros behind it
//
// Page n lies at 4096 × (1 + how many pages before n are present). The header is written last: a file that has it was
// written to its end.

import { closeSync, fstatSync, openSync, readSync } from 'node:fs';
import { crc32 } from 'node:zlib';
import { PAGE_BYTES, SnowflockError } from '@snowflock/protocol/pages';
import { PRESENCE_MAX_PAGES, PresenceMap } from '../presence-map.ts';

const MAGIC = 'SFPAGES1';
const HEADER_CHECKED_BYTES = 44;
const ID_AT = 28;
const ID_BYTES = 16;
/** A bitmap of 2^32 pages does not get larger by compressing it, but for a header. */
const PRESENCE_MAX_BYTES = PRESENCE_MAX_PAGES / 8 + 4096;

export interface PageFileParts {
  /** A UUID. */
  readonly id: string;
  readonly presence: PresenceMap;
  /** One for each page in the file. */
  readonly checksums: Uint32Array;
}

/** What goes behind the pages, and the header, which goes before them and is written last. */
export function encodePageFile({ id, presence, checksums }: PageFileParts): {
  header: Buffer;
  trailer: Buffer;
} {
  const map = presence.encode();
  const sums = Buffer.from(checksums.buffer, checksums.byteOffset, checksums.byteLength);
  const header = Buffer.alloc(PAGE_BYTES);
  header.write(MAGIC, 'latin1');
  header.writeUInt32LE(presence.pageCount, 8);
  header.writeUInt32LE(checksums.length, 12);
  header.writeUInt32LE(map.length, 16);
  header.writeUInt32LE(crc32(map), 20);
  header.writeUInt32LE(crc32(sums), 24);
  header.write(id.replaceAll('-', ''), ID_AT, ID_BYTES, 'hex');
  header.writeUInt32LE(crc32(header.subarray(0, HEADER_CHECKED_BYTES)), HEADER_CHECKED_BYTES);
  return { header, trailer: Buffer.concat([map, sums]) };
}

/** A page file that is read from. Owns its descriptor. */
export class PageFile {
  readonly presence: PresenceMap;
  readonly sizeBytes: number;
  readonly #path: string;
  readonly #fd: number;
  readonly #checksums: Uint32Array;

  private constructor(parts: {
    path: string;
    fd: number;
    sizeBytes: number;
    presence: PresenceMap;
    checksums: Uint32Array;
  }) {
    this.presence = parts.presence;
    this.sizeBytes = parts.sizeBytes;
    this.#path = parts.path;
    this.#fd = parts.fd;
    this.#checksums = parts.checksums;
  }

  /** Throws 'source-lost' for what is no whole page file of this checkpoint. */
  static open(path: string, expected: { readonly id: string; readonly pageCount: number }): PageFile {
    let fd: number;
    try {
      fd = openSync(path, 'r');
    } catch (error) {
      throw damaged(path, `it cannot be opened: ${(error as Error).message}`);
    }
    try {
      const { size } = fstatSync(fd);
      return new PageFile({ path, fd, sizeBytes: size, ...readParts(path, fd, size, expected) });
    } catch (error) {
      closeSync(fd);
      throw error;
    }
  }

  get pageCount(): number {
    return this.presence.pageCount;
  }

  /** Reads `pageCount` present pages from `firstPage` on. Throws 'source-lost' when one is not what was written. */
  read(target: Buffer, options: { offset: number; firstPage: number; pageCount: number }): void {
    const { offset, firstPage, pageCount } = options;
    const rank = this.presence.rank(firstPage);
    const length = pageCount * PAGE_BYTES;
    readExactly(this.#path, this.#fd, target.subarray(offset, offset + length), (1 + rank) * PAGE_BYTES);
    for (let index = 0; index < pageCount; index++) {
      const at = offset + index * PAGE_BYTES;
      if (crc32(target.subarray(at, at + PAGE_BYTES)) === this.#checksums[rank + index]) continue;
      throw damaged(this.#path, `page ${firstPage + index} is not what was written`);
    }
  }

  close(): void {
    closeSync(this.#fd);
  }
}

function readParts(
  path: string,
  fd: number,
  size: number,
  expected: { readonly id: string; readonly pageCount: number },
): { presence: PresenceMap; checksums: Uint32Array } {
  const header = Buffer.alloc(PAGE_BYTES);
  readExactly(path, fd, header, 0);
  if (header.toString('latin1', 0, MAGIC.length) !== MAGIC) throw damaged(path, 'it is no page file');
  if (crc32(header.subarray(0, HEADER_CHECKED_BYTES)) !== header.readUInt32LE(HEADER_CHECKED_BYTES))
    throw damaged(path, 'its header is not what was written');
  if (header.toString('hex', ID_AT, ID_AT + ID_BYTES) !== expected.id.replaceAll('-', ''))
    throw damaged(path, 'it belongs to another checkpoint');
  const pageCount = header.readUInt32LE(8);
  const dataPages = header.readUInt32LE(12);
  const mapBytes = header.readUInt32LE(16);
  if (pageCount !== expected.pageCount)
    throw damaged(path, `it is of ${pageCount} pages, not of ${expected.pageCount}`);
  if (dataPages > pageCount || mapBytes > PRESENCE_MAX_BYTES) throw damaged(path, 'its sizes cannot be');
  const wanted = (1 + dataPages) * PAGE_BYTES + mapBytes + 4 * dataPages;
  if (size !== wanted) throw damaged(path, `it has ${size} bytes instead of ${wanted}`);
  const map = Buffer.alloc(mapBytes);
  readExactly(path, fd, map, (1 + dataPages) * PAGE_BYTES);
  const checksums = new Uint32Array(dataPages);
  const sums = Buffer.from(checksums.buffer);
  readExactly(path, fd, sums, (1 + dataPages) * PAGE_BYTES + mapBytes);
  if (crc32(map) !== header.readUInt32LE(20) || crc32(sums) !== header.readUInt32LE(24))
    throw damaged(path, 'its index is not what was written');
  const presence = PresenceMap.decode(map, { maxPages: pageCount });
  if (presence.pageCount !== pageCount || presence.count() !== dataPages)
    throw damaged(path, 'its presence map does not fit its pages');
  return { presence, checksums };
}

function readExactly(path: string, fd: number, target: Buffer, position: number): void {
  for (let at = 0; at < target.length;) {
    let got: number;
    try {
      got = readSync(fd, target, at, target.length - at, position + at);
    } catch (error) {
      throw damaged(path, `it cannot be read: ${(error as Error).message}`);
    }
    if (got === 0) throw damaged(path, 'it ends early');
    at += got;
  }
}

function damaged(path: string, what: string): SnowflockError {
  return new SnowflockError('source-lost', `checkpoint file ${path} cannot be used: ${what}`);
}
