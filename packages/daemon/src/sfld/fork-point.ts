// What the clones of a ticket are put back to: the descriptor that they were started with, kept on disk while their group lasts.

import { readFile, writeFile } from 'node:fs/promises';
import { decodeDescriptor, encodeDescriptor, SnowflockError, type Descriptor } from '@snowflock/protocol';
import type { Log } from '../log.ts';

export class ForkPoint {
  readonly #path: string;
  readonly #ticket: string;
  readonly #log: Log;
  #kept: Promise<void> = Promise.resolve();

  constructor(options: { readonly path: string; readonly ticket: string; readonly log: Log }) {
    this.#path = options.path;
    this.#ticket = options.ticket;
    this.#log = options.log;
  }

  /** Without what only the first start needs. It holds the key of the pages, as the journal of the other side does. */
  keep({ header, deviceState }: Descriptor): void {
    const kept = { header: { ...header, prefetch: [] }, presence: Buffer.alloc(0), deviceState };
    this.#kept = writeFile(this.#path, encodeDescriptor(kept), { mode: 0o600 }).catch((error: unknown) =>
      this.#log.warn({ err: error }, 'its clones cannot be reset'),
    );
  }

  /** Resolves when nothing is being written any more. */
  settled(): Promise<void> {
    return this.#kept;
  }

  async read(): Promise<Descriptor> {
    await this.#kept;
    try {
      return decodeDescriptor(await readFile(this.#path));
    } catch (cause) {
      throw new SnowflockError('unavailable', `the fork point of ticket ${this.#ticket} cannot be read`, {
        cause,
      });
    }
  }
}
