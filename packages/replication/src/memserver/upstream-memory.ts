// The snapshot that a forked clone was itself cloned from: what the clone has not written is as it was there. It is read from the
// RAM file of that snapshot's memtap on this host, which fetches what is not here yet from where it has it: so a memtap relays, and
// what it fetched once is in the page cache for all.
//
// Owns two descriptors of the file: by the second one it says that nobody waits for what is read. Reads may take a network round trip,
// and so are made in the thread pool, with a deadline: whoever serves pages never waits for one.
// Invariant: only pages of `presence` are read. Where the upstream snapshot has a hole, there is one.

import { open, readFile, type FileHandle } from 'node:fs/promises';
import { PAGE_BYTES, SnowflockError, toSnowflockError } from '@snowflock/protocol/pages';
import { AHEAD_OPEN_FLAGS } from '../ahead-reads.ts';
import { PresenceMap } from '../presence-map.ts';

/** Longer than a memtap tries to reach its source (10 s); what it has then given up fails at once. */
const READ_TIMEOUT_MS = 15_000;
/** Of the pool's 32 threads (supervisor/memserver-process.ts): the others are for what a guest waits for. */
const AHEAD_READS_MAX = 16;
/** Read at a time: more the kernel reads in several steps, each of which it reads ahead from. */
const AHEAD_RUN_PAGES = 32;
/** A memtap answers at once, unless it does not run. */
const OPEN_TIMEOUT_MS = 5_000;

export interface UpstreamOptions {
  /** The file that the memtap serves. */
  readonly ramPath: string;
  /** Serialised presence map of the upstream snapshot. */
  readonly presencePath: string;
}

interface Run {
  readonly offset: number;
  readonly firstPage: number;
  readonly pageCount: number;
}

export class UpstreamMemory {
  /** Pages to be read here: those of the upstream snapshot that the clone has no page of its own of. */
  readonly presence: PresenceMap;
  readonly #file: FileHandle;
  readonly #aheadFile: FileHandle;
  readonly #path: string;
  readonly #under = new Set<Promise<void>>();
  #aheadUnder = 0;
  /** In the order of their coming: each is told when it is its turn. */
  readonly #aheadWaiting: (() => void)[] = [];

  private constructor(options: {
    presence: PresenceMap;
    file: FileHandle;
    aheadFile: FileHandle;
    path: string;
  }) {
    this.presence = options.presence;
    this.#file = options.file;
    this.#aheadFile = options.aheadFile;
    this.#path = options.path;
  }

  /** `own`: the pages that the clone has itself. Throws 'source-lost' when the memtap does not answer. */
  static async open(options: UpstreamOptions & { readonly own: PresenceMap }): Promise<UpstreamMemory> {
    const { ramPath, presencePath, own } = options;
    const opened = ['r', AHEAD_OPEN_FLAGS].map((flags) => open(ramPath, flags));
    try {
      const [files, encoded] = await Promise.all([
        before(Promise.all(opened), OPEN_TIMEOUT_MS),
        readFile(presencePath),
      ]);
      const [file, aheadFile] = files;
      if (!file || !aheadFile) throw new Error('two were opened');
      const upstream = PresenceMap.decode(encoded, { maxPages: own.pageCount });
      return new UpstreamMemory({ presence: upstream.without(own), file, aheadFile, path: ramPath });
    } catch (error) {
      // they may come late, or never
      for (const each of opened) each.then((file) => file.close()).catch(() => undefined);
      throw lost(ramPath, error);
    }
  }

  /** Reads that have not come back; the process cannot end by itself before they have. */
  get readsUnderWay(): number {
    return this.#under.size;
  }

  /**
   * Reads whole pages into `target` at `offset`. Rejects with 'source-lost' when the memtap is gone, or cannot get them; `target` may
   * then still be written to.
   */
  async read(target: Buffer, options: Run & { readonly ahead?: boolean }): Promise<void> {
    const { ahead = false, ...run } = options;
    const reading = ahead ? this.#readInTurn(target, run) : readWhole(this.#file, target, run);
    this.#under.add(reading);
    void reading.finally(() => this.#under.delete(reading)).catch(() => undefined); // told to the caller, below
    try {
      await before(reading, READ_TIMEOUT_MS);
    } catch (error) {
      throw lost(this.#path, error);
    }
  }

  async close(): Promise<void> {
    if (this.#under.size === 0) await Promise.all([this.#file.close(), this.#aheadFile.close()]);
  }

  async #readInTurn(target: Buffer, run: Run): Promise<void> {
    if (this.#aheadUnder < AHEAD_READS_MAX) this.#aheadUnder++;
    else await new Promise<void>((resolve) => this.#aheadWaiting.push(resolve));
    try {
      const { offset, firstPage, pageCount } = run;
      for (let done = 0; done < pageCount; done += AHEAD_RUN_PAGES) {
        const count = Math.min(AHEAD_RUN_PAGES, pageCount - done);
        const part = { offset: offset + done * PAGE_BYTES, firstPage: firstPage + done, pageCount: count };
        const before = (count - 1) * PAGE_BYTES;
        // The kernel marks the last page that it had to read, and reads ahead from it at once: so that one is read first, and by itself.
        const last = { offset: part.offset + before, firstPage: part.firstPage + count - 1, pageCount: 1 };
        await readWhole(this.#aheadFile, target, last);
        if (count > 1) await readWhole(this.#aheadFile, target, part);
      }
    } finally {
      const next = this.#aheadWaiting.shift();
      if (next) next();
      else this.#aheadUnder--;
    }
  }
}

async function readWhole(file: FileHandle, target: Buffer, run: Run): Promise<void> {
  let { offset } = run;
  let position = run.firstPage * PAGE_BYTES;
  for (let left = run.pageCount * PAGE_BYTES; left > 0;) {
    const { bytesRead } = await file.read(target, offset, left, position);
    if (bytesRead === 0) throw new Error('the file ends early');
    offset += bytesRead;
    position += bytesRead;
    left -= bytesRead;
  }
}

async function before<T>(work: Promise<T>, timeoutMs: number): Promise<T> {
  const late = Promise.withResolvers<never>();
  const timer = setTimeout(() => late.reject(new Error(`no answer within ${timeoutMs} ms`)), timeoutMs);
  try {
    return await Promise.race([work, late.promise]);
  } finally {
    clearTimeout(timer);
  }
}

function lost(path: string, error: unknown): SnowflockError {
  return new SnowflockError(
    'source-lost',
    `the memory that this VM was itself cloned with cannot be read from its memtap (${path}): ${toSnowflockError(error).message}`,
    { cause: error },
  );
}
