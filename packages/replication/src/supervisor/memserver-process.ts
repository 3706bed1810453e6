// The supervisor's end of a memserver.

import { z } from 'zod';
import { SnowflockError } from '@snowflock/protocol/pages';
import {
  freezeReplySchema,
  learntReplySchema,
  type MemserverStats,
  memserverStatsSchema,
  type SavedPages,
  saveReplySchema,
} from '../control/schemas.ts';
import type { MemtapFilesOptions } from '../memserver/memtap-files.ts';
import { logArguments, type LogSubject } from '../process-log.ts';
import { connectManaged, ManagedProcess, type ProcessConnection, startManaged } from './managed-process.ts';

/** Threads that read a memtap's file, of a clone that was forked: each may wait for a network round trip. Made with the first read. */
const READ_THREADS = 32;

export interface MemserverStartOptions {
  /** Unix socket paths that it makes: for us, and for the frozen process. */
  readonly controlPath: string;
  readonly leasePath: string;
  /** Address to serve pages on; reachable from the clones' hosts. */
  readonly listenAddress: string;
  /** 0, the default: any free port. */
  readonly port?: number;
  readonly logPath: string;
  readonly orphanMs?: number;
  /** For its log. */
  readonly subject?: LogSubject;
}

export interface FreezeOptions {
  /** The frozen process; it holds a lease, or takes one within two seconds. */
  readonly pid: number;
  /** Where the RAM lies in it, in the order of the RAM file. `start` is hexadecimal, `length` in bytes, whole pages. */
  readonly ramRanges: readonly { readonly start: string; readonly length: number }[];
  readonly disk?: { readonly format: 'qcow2' | 'raw'; readonly path: string; readonly sizeBytes: number };
  /** When the frozen VM is itself a clone: the RAM file of its memtap, and a file with that snapshot's serialised presence map. */
  readonly upstream?: { readonly ramPath: string; readonly presencePath: string };
  /** Frozen process of an earlier fork of the same VM: which pages have not changed since is found out. */
  readonly earlierPid?: number;
}

/** Files of a checkpoint, and how many pages the region of each has. */
export interface CheckpointFiles {
  readonly id: string;
  readonly ram: { readonly path: string; readonly pageCount: number };
  readonly disk?: { readonly path: string; readonly pageCount: number };
}

export interface FreezeResult {
  /** Serialised, as `attach` of a memtap wants it. */
  readonly presence: Buffer;
  readonly presentPages: number;
  /** Serialised presence map of the pages that are as in the earlier fork. */
  readonly unchanged?: Buffer;
}

/** What a memtap of this host serves, and the files that it is copied to. */
export interface KeepOptions {
  readonly id: string;
  readonly from: MemtapFilesOptions;
  readonly ramPath: string;
  readonly diskPath?: string;
}

/** What a memtap of this host serves, and its control socket. */
export interface RelayedMemtap extends MemtapFilesOptions {
  readonly controlPath: string;
}

export interface Learnt {
  /** RAM pages that clones waited for in their first moments, in that order. */
  readonly wakeUpPages: readonly number[];
  /** All that they needed, in that order, as `configure` of the next fork's memserver wants it. */
  readonly needs: Buffer;
}

/** Writing gigabytes to a slow disk; a memserver that dies is noticed at once. */
const SAVE_TIMEOUT_MS = 3_600_000;

export class MemserverProcess extends ManagedProcess {
  readonly leasePath: string;
  readonly port: number;

  private constructor(
    connection: ProcessConnection,
    options: { readonly leasePath: string; readonly port: number },
  ) {
    super(connection);
    this.leasePath = options.leasePath;
    this.port = options.port;
  }

  /** Resolves when it listens on all its sockets. Throws 'unavailable' with the end of its log. */
  static async start(options: MemserverStartOptions): Promise<MemserverProcess> {
    const { controlPath, leasePath, listenAddress, port = 0, logPath, orphanMs } = options;
    const args = [
      '--control',
      controlPath,
      '--lease',
      leasePath,
      '--listen',
      listenAddress,
      '--port',
      String(port),
    ];
    args.push(...logArguments(options.subject));
    if (orphanMs !== undefined) args.push('--orphan-ms', String(orphanMs));
    const script = new URL('../memserver/main.ts', import.meta.url);
    const started = await startManaged({
      ...{ name: 'memserver', script, args, controlPath, logPath },
      env: { UV_THREADPOOL_SIZE: String(READ_THREADS) },
    });
    const bound = started.ready['port'];
    if (typeof bound !== 'number')
      throw new SnowflockError('internal', 'memserver: no port in its readiness line');
    return new MemserverProcess(started, { leasePath, port: bound });
  }

  /** Takes over a running memserver from a supervisor before us. */
  static async attachTo(options: {
    readonly pid: number;
    readonly controlPath: string;
    readonly leasePath: string;
    readonly port: number;
  }): Promise<MemserverProcess> {
    const { pid, controlPath } = options;
    return new MemserverProcess(
      await connectManaged({ name: 'memserver', controlPath, child: { pid } }),
      options,
    );
  }

  /** Gives it the fork's key (32 bytes); clients are refused before. */
  async configure(options: {
    readonly key: Buffer;
    /** Of the interface that pages may go to many hosts at once from. */
    readonly multicastAddress?: string | undefined;
    /** What the clones of an earlier fork needed; absent: none of this one's hosts is told what others need. */
    readonly needs?: Buffer | undefined;
  }): Promise<void> {
    const { key, multicastAddress } = options;
    const needs = options.needs?.toString('base64');
    await this.call('configure', { keyHex: key.toString('hex'), multicastAddress, needs }, z.object({}));
  }

  /** Takes the frozen process over and reads its page map. Once. */
  async freeze(options: FreezeOptions): Promise<FreezeResult> {
    const { presence, presentPages, unchanged } = await this.call('freeze', options, freezeReplySchema);
    return {
      ...{ presence: Buffer.from(presence, 'base64'), presentPages },
      ...(unchanged === undefined ? {} : { unchanged: Buffer.from(unchanged, 'base64') }),
    };
  }

  /** Serves a checkpoint in place of a frozen process. Throws 'source-lost' when its files are damaged. */
  async openCheckpoint(files: CheckpointFiles): Promise<FreezeResult> {
    const { id: checkpoint, ...regions } = files;
    const reply = await this.call('open-checkpoint', { checkpoint, ...regions }, freezeReplySchema);
    return { presence: Buffer.from(reply.presence, 'base64'), presentPages: reply.presentPages };
  }

  /** Fetches all that a memtap of this host serves, writes it to page files, and serves these. Throws 'no-resources', 'source-lost'. */
  async keep({ id: checkpoint, from, ramPath: ram, diskPath: disk }: KeepOptions): Promise<void> {
    await this.call('keep', { checkpoint, from, ram, disk }, freezeReplySchema, SAVE_TIMEOUT_MS);
  }

  /** Passes on what a memtap of this host serves: what is asked for here, the memtap fetches if it has to. Once. Throws 'source-lost'. */
  async relay({ controlPath, ...from }: RelayedMemtap): Promise<void> {
    await this.call('relay', { from, controlPath }, freezeReplySchema);
  }

  /** Writes the snapshot to page files; resolves when they are on the disk. Throws 'no-resources' when it is full. */
  async save(options: {
    readonly id: string;
    readonly ramPath: string;
    readonly diskPath?: string;
  }): Promise<SavedPages> {
    const { id: checkpoint, ...paths } = options;
    return this.call('save', { checkpoint, ...paths }, saveReplySchema, SAVE_TIMEOUT_MS);
  }

  /** What can be known of the next fork's clones from those of this one. */
  async learnt(): Promise<Learnt> {
    const { wakeUp, needs } = await this.call('learnt', {}, learntReplySchema);
    return { wakeUpPages: wakeUp, needs: Buffer.from(needs, 'base64') };
  }

  async stats(): Promise<MemserverStats> {
    return this.call('stats', {}, memserverStatsSchema);
  }
}
