// The snapshot that a forked clone was itself cloned from: what the clone has not written is as it was there. It is read from the
// RAM file of that snapshot's memtap on this host, which fetches what is not here yet from where it has it: so a memtap relays, and
// what it fetched once is in the page cache for all.
//
// Owns one descriptor of the file. Reads may take a network round trip, and so are made in the thread pool, with a deadline:
// whoever serves pages never waits for one.
// Invariant: only pages of `presence` are read. Where the upstream snapshot has a hole, there is one.

import { open, readFile, type FileHandle } from 'node:fs/promises';
import { PAGE_BYTES, SnowflockError, toSnowflockError } from '@snowflock/protocol/pages';
import { PresenceMap } from '../presence-map.ts';

/** Longer than a memtap tries to reach its source (10 s); what it has then given up fails at once. */
const READ_TIMEOUT_MS = 15_000;
/** A memtap answers at once, unless it does not run. */
const OPEN_TIMEOUT_MS = 5_000;

export interface UpstreamOptions {
  /** The file that the memtap serves. */
  readonly ramPath: string;
  /** Serialised presence map of the upstream snapshot. */
  readonly presencePath: string;
}

export class UpstreamMemory {
  /** Pages to be read here: those of the upstream snapshot that the clone has no page of its own of. */
  readonly presence: PresenceMap;
  readonly #file: FileHandle;
  readonly #path: string;
  readonly #under = new Set<Promise<void>>();

  private constructor(options: { presence: PresenceMap; file: FileHandle; path: string }) {
    this.presence = options.presence;
    this.#file = options.file;
    this.#path = options.path;
  }

  /** `own`: the pages that the clone has itself. Throws 'source-lost' when the memtap does not answer. */
  static async open(options: UpstreamOptions & { readonly own: PresenceMap }): Promise<UpstreamMemory> {
    const { ramPath, presencePath, own } = options;
    const opened = open(ramPath, 'r');
    try {
      const [file, encoded] = await Promise.all([before(opened, OPEN_TIMEOUT_MS), readFile(presencePath)]);
      const upstream = PresenceMap.decode(encoded, { maxPages: own.pageCount });
      return new UpstreamMemory({ presence: upstream.without(own), file, path: ramPath });
    } catch (error) {
      opened.then((file) => file.close()).catch(() => undefined); // it may come late, or never
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
  async read(
    target: Buffer,
    options: { offset: number; firstPage: number; pageCount: number },
  ): Promise<void> {
    const reading = this.#read(target, options);
    this.#under.add(reading);
    void reading.finally(() => this.#under.delete(reading)).catch(() => undefined); // told to the caller, below
    try {
      await before(reading, READ_TIMEOUT_MS);
    } catch (error) {
      throw lost(this.#path, error);
    }
  }

  async close(): Promise<void> {
    if (this.#under.size === 0) await this.#file.close();
  }

  async #read(
    target: Buffer,
    options: { offset: number; firstPage: number; pageCount: number },
  ): Promise<void> {
    let offset = options.offset;
    let position = options.firstPage * PAGE_BYTES;
    for (let left = options.pageCount * PAGE_BYTES; left > 0;) {
      const { bytesRead } = await this.#file.read(target, offset, left, position);
      if (bytesRead === 0) throw new Error('the file ends early');
      offset += bytesRead;
      position += bytesRead;
      left -= bytesRead;
    }
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
