// Passes on to other hosts what a clone group's memtap fetches, so that a page need not leave the parent's host once for each of them: a
// memserver whose snapshot is the memtap's files.
//
//   starting ──configure──▶ ready ──serve──▶ serving ──dispose──▶ gone        from starting on: adopted by the next sfld
//
// Nothing depends on it: hosts that it serves know the parent's host too, and ask there when it fails (docs/distribution.md).
// Invariant: it ends before the memtap that it reads.

import { join } from 'node:path';
import { SnowflockError, toSnowflockError } from '@snowflock/protocol';
import {
  MemserverProcess,
  type MemserverStats,
  type PageSource,
  type RelayedMemtap,
} from '@snowflock/replication';
import { isRunning, markProcess } from '@snowflock/vm';
import type { Log } from '../log.ts';
import type { HostContext } from './context.ts';
import type { GroupEntry } from './journal.ts';

export type RelayMark = NonNullable<GroupEntry['relay']>;

export interface RelayOptions {
  readonly context: HostContext;
  readonly ticket: string;
  readonly clusterid: number;
  /** Of the group's files. */
  readonly directory: string;
  readonly log: Log;
}

export class Relay implements AsyncDisposable {
  readonly #options: RelayOptions;
  readonly #memserver: MemserverProcess;
  readonly #configured = Promise.withResolvers<void>();

  private constructor(options: RelayOptions, memserver: MemserverProcess) {
    this.#options = options;
    this.#memserver = memserver;
    this.#configured.promise.catch(() => undefined); // told to whoever asks
  }

  static async start(options: RelayOptions): Promise<Relay> {
    const { context, directory, clusterid, ticket } = options;
    const memserver = await MemserverProcess.start({
      ...pathsIn(directory),
      listenAddress: context.address,
      logPath: join(context.runDir, 'memserver.log'),
      subject: { clusterid, ticket },
    });
    return new Relay(options, memserver);
  }

  /** Takes over what the last sfld had; null when it has ended, which those that it served have found out. */
  static async adopt(options: RelayOptions, mark: RelayMark | null): Promise<Relay | null> {
    if (!mark || !isRunning(mark)) return null;
    const { pid, port } = mark;
    const memserver = await MemserverProcess.attachTo({ pid, port, ...pathsIn(options.directory) });
    const relay = new Relay(options, memserver);
    relay.#configured.resolve();
    return relay;
  }

  get pid(): number {
    return this.#memserver.pid;
  }

  get mark(): RelayMark | null {
    const mark = markProcess(this.pid);
    return mark && { ...mark, port: this.#memserver.port };
  }

  /** Gives it the key of the fork's pages; null: there is none to be had, and nobody is served. */
  async configure(key: Buffer | null): Promise<void> {
    try {
      if (!key) throw new SnowflockError('unavailable', 'this host did not get the key of the fork');
      await this.#memserver.configure({ key });
      this.#configured.resolve();
    } catch (error) {
      this.#configured.reject(error);
    }
  }

  /** Where it listens; waits until it does. */
  async source(): Promise<PageSource> {
    await this.#configured.promise;
    return { address: this.#options.context.address, port: this.#memserver.port };
  }

  /** There has been a fork, and a memtap of this host has it. Never rejects: hosts that are not served go elsewhere. */
  async serve(memtap: RelayedMemtap): Promise<void> {
    try {
      await this.#memserver.relay(memtap);
    } catch (error) {
      const reason = toSnowflockError(error).message;
      this.#options.log.warn(
        { reason },
        'this host does not pass on pages; others fetch them from the parent',
      );
    }
  }

  async stats(): Promise<MemserverStats | null> {
    try {
      return await this.#memserver.stats();
    } catch (error) {
      if (error instanceof SnowflockError) return null;
      throw error;
    }
  }

  /** Lets it run, for the next sfld. */
  detach(): void {
    this.#memserver.detach();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#configured.reject(new SnowflockError('no-such-ticket', 'the ticket has ended'));
    await this.#memserver[Symbol.asyncDispose]();
  }
}

function pathsIn(directory: string): { controlPath: string; leasePath: string } {
  return { controlPath: join(directory, 'relay'), leasePath: join(directory, 'relay-lease') };
}
