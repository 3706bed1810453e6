// Writing a page file (page-file.ts) from whatever has pages, in the background of a process that serves others.

import { open, rm, type FileHandle } from 'node:fs/promises';
import { crc32 } from 'node:zlib';
import { PAGE_BYTES, SnowflockError } from '@snowflock/protocol/pages';
import { PresenceMap } from '../presence-map.ts';
import { isZeroPage } from '../zero-page.ts';
import { encodePageFile } from './page-file.ts';

/** Read and written at a time: short enough that pages that somebody waits for are served in between. */
const CHUNK_PAGES = 256;

export interface PagesToWrite {
  /** Pages that may be other than zero; all others are. */
  readonly presence: PresenceMap;
  /** Of pages that are all in the presence map. */
  read(
    target: Buffer,
    options: { offset: number; firstPage: number; pageCount: number },
  ): void | Promise<void>;
}

export interface WrittenPages {
  readonly bytes: number;
  readonly dataPages: number;
}

/**
 * Resolves when all of it is on the disk. Rejects with 'no-resources' when the disk is full, 'unavailable' when it fails otherwise, and what
 * `read` throws; the file is gone then.
 */
export async function writePageFile(
  path: string,
  id: string,
  pages: PagesToWrite,
  signal?: AbortSignal,
): Promise<WrittenPages> {
  const file = await open(path, 'wx', 0o600).catch((error: unknown) => {
    throw cannotWrite(path, error);
  });
  try {
    const written = await writeAll({ path, file }, id, pages, signal);
    await file.close();
    return written;
  } catch (error) {
    await file.close().catch(() => undefined); // it is removed
    await rm(path, { force: true });
    throw error;
  }
}

async function writeAll(
  out: { readonly path: string; readonly file: FileHandle },
  id: string,
  pages: PagesToWrite,
  signal: AbortSignal | undefined,
): Promise<WrittenPages> {
  const { pageCount } = pages.presence;
  const presence = new PresenceMap(pageCount);
  const checksums = new Uint32Array(pages.presence.count());
  let dataPages = 0;
  const chunk = Buffer.alloc(CHUNK_PAGES * PAGE_BYTES);
  let position = PAGE_BYTES;
  for (let page = pages.presence.next(0, true); page < pageCount;) {
    signal?.throwIfAborted();
    const end = pages.presence.next(page, false, page + CHUNK_PAGES);
    await pages.read(chunk, { offset: 0, firstPage: page, pageCount: end - page });
    const length = keepNonZero(chunk, page, end, (each, sum) => {
      presence.set(each);
      checksums[dataPages++] = sum;
    });
    await write(out, chunk.subarray(0, length), position);
    position += length;
    page = pages.presence.next(end, true);
  }
  const { header, trailer } = encodePageFile({ id, presence, checksums: checksums.slice(0, dataPages) });
  await write(out, trailer, position);
  await sync(out);
  await write(out, header, 0);
  await sync(out);
  return { bytes: position + trailer.length, dataPages };
}

/** Moves the pages that are not zero together; answers how many bytes they are. */
function keepNonZero(
  chunk: Buffer,
  from: number,
  end: number,
  keep: (page: number, checksum: number) => void,
): number {
  let to = 0;
  for (let page = from; page < end; page++) {
    const at = (page - from) * PAGE_BYTES;
    if (isZeroPage(chunk, at)) continue;
    if (to !== at) chunk.copyWithin(to, at, at + PAGE_BYTES);
    keep(page, crc32(chunk.subarray(to, to + PAGE_BYTES)));
    to += PAGE_BYTES;
  }
  return to;
}

async function write(
  { path, file }: { path: string; file: FileHandle },
  bytes: Buffer,
  position: number,
): Promise<void> {
  for (let at = 0; at < bytes.length;) {
    try {
      at += (await file.write(bytes, at, bytes.length - at, position + at)).bytesWritten;
    } catch (error) {
      throw cannotWrite(path, error);
    }
  }
}

async function sync({ path, file }: { path: string; file: FileHandle }): Promise<void> {
  await file.sync().catch((error: unknown) => {
    throw cannotWrite(path, error);
  });
}

function cannotWrite(path: string, cause: unknown): SnowflockError {
  const { code, message } = cause as NodeJS.ErrnoException;
  if (code === 'ENOSPC' || code === 'EDQUOT')
    return new SnowflockError('no-resources', `the disk of ${path} is full; make room and try again`, {
      cause,
    });
  return new SnowflockError('unavailable', `${path} cannot be written: ${message}`, { cause });
}
