// The supervisor's end of a memtap.

import { join } from 'node:path';
import { z } from 'zod';
import {
  arrivedReplySchema,
  type MemtapStats,
  memtapStatsSchema,
  type PageSource,
} from '../control/schemas.ts';
import { PRESENCE_MAX_PAGES, PresenceMap } from '../presence-map.ts';
import { cleanupMount } from './cleanup-mount.ts';
import { logArguments, type LogSubject } from '../process-log.ts';
import { connectManaged, ManagedProcess, type ProcessConnection, startManaged } from './managed-process.ts';

/**
 * It shares the CPUs with the clones that are just starting: no compiling on other threads before the first few thousand
 * faults are over (measured: 20 ms of CPU time).
 */
const V8_FLAGS = ['--invocation-count-for-maglev=5000', '--invocation-count-for-maglev-osr=2000'];

export interface MemtapStartOptions {
  readonly controlPath: string;
  /** Directory to mount on; made if it is not there. */
  readonly mountPath: string;
  readonly ramBytes: number;
  /** 0, the default: no disk file. */
  readonly diskBytes?: number;
  readonly logPath: string;
  readonly orphanMs?: number;
  /** For its log. */
  readonly subject?: LogSubject;
  /** How long no source may be reachable before reads fail. */
  readonly sourceTimeoutMs?: number;
  /** False: all pages come as they are; default: over a narrow link those that nobody waits for yet come compressed. */
  readonly compress?: boolean | undefined;
}

export interface ConnectOptions {
  /** Tried in order, round and round. */
  readonly sources: readonly PageSource[];
  readonly key: Buffer;
  /** Of this host's interface that pages for many hosts come in at; absent: all is fetched by unicast. */
  readonly multicastAddress?: string | undefined;
  /** RAM pages to fetch at once, in the order in which they will be needed. */
  readonly prefetch?: readonly number[];
}

export interface AttachOptions extends ConnectOptions {
  /** Serialised presence map of the RAM, as `freeze` gave it. */
  readonly presence: Buffer;
  /** RAM pages that need not be fetched: the file of another memtap of this host has them. */
  readonly near?: { readonly ramPath: string; readonly pages: PresenceMap } | undefined;
}

export class MemtapProcess extends ManagedProcess {
  readonly mountPath: string;

  private constructor(connection: ProcessConnection, options: { readonly mountPath: string }) {
    super(connection);
    this.mountPath = options.mountPath;
  }

  /** Resolves when the file system is mounted and serves; READs are held until `attach`. Throws 'unavailable'. */
  static async start(options: MemtapStartOptions): Promise<MemtapProcess> {
    const { controlPath, mountPath, ramBytes, diskBytes = 0, logPath } = options;
    const args = ['--control', controlPath, '--mount', mountPath, '--ram-bytes', String(ramBytes)];
    if (diskBytes > 0) args.push('--disk-bytes', String(diskBytes));
    args.push(...logArguments(options.subject));
    if (options.orphanMs !== undefined) args.push('--orphan-ms', String(options.orphanMs));
    if (options.sourceTimeoutMs !== undefined)
      args.push('--source-timeout-ms', String(options.sourceTimeoutMs));
    if (options.compress === false) args.push('--uncompressed');
    const script = new URL('../memtap/main.ts', import.meta.url);
    try {
      return new MemtapProcess(
        await startManaged({ name: 'memtap', script, v8Flags: V8_FLAGS, args, controlPath, logPath }),
        options,
      );
    } catch (error) {
      await cleanupMount(mountPath);
      throw error;
    }
  }

  /** Takes over a running memtap from a supervisor before us. */
  static async attachTo(options: {
    readonly pid: number;
    readonly controlPath: string;
    readonly mountPath: string;
  }): Promise<MemtapProcess> {
    const { pid, controlPath } = options;
    return new MemtapProcess(await connectManaged({ name: 'memtap', controlPath, child: { pid } }), options);
  }

  get ramPath(): string {
    return join(this.mountPath, 'ram');
  }

  get diskPath(): string {
    return join(this.mountPath, 'disk');
  }

  /** Opens the link ahead of the fork: fetching begins the moment that the memserver has its snapshot. */
  async connect(options: ConnectOptions): Promise<void> {
    await this.call('connect', sourceFields(options), z.object({}));
  }

  /** Resolves when the rehearsal that follows connect() is over. Throws 'timeout'. */
  async rehearsed(timeoutMs: number): Promise<void> {
    await this.call('rehearsed', {}, z.object({}), timeoutMs);
  }

  /** Says what is where; held READs go on. Once. */
  async attach(options: AttachOptions): Promise<void> {
    const presence = options.presence.toString('base64');
    const near = options.near && {
      ramPath: options.near.ramPath,
      pages: options.near.pages.encode().toString('base64'),
    };
    await this.call('attach', { ...sourceFields(options), presence, near }, z.object({}));
  }

  /** Fetches RAM pages before they are asked for, in the order in which they will be needed. */
  async prefetch(pages: readonly number[]): Promise<void> {
    await this.call('prefetch', { pages }, z.object({}));
  }

  /** From now on pages that others needed are fetched as well; before, they would stand in the way of clones that start. */
  async push(): Promise<void> {
    await this.call('push', {}, z.object({}));
  }

  /** The same pages from another source, which has all of them. */
  async move(options: ConnectOptions): Promise<void> {
    await this.call('move', sourceFields(options), z.object({}));
  }

  /**
   * The pages of RAM and disk that have come so far and are not zero. With no read-ahead, no prefetch and unicast these are those that somebody
   * on this host touched.
   */
  async arrived(): Promise<{ ram: PresenceMap; disk: PresenceMap }> {
    const { ram, disk } = await this.call('arrived', {}, arrivedReplySchema);
    const decode = (map: string): PresenceMap =>
      PresenceMap.decode(Buffer.from(map, 'base64'), { maxPages: PRESENCE_MAX_PAGES });
    return { ram: decode(ram), disk: decode(disk) };
  }

  async stats(): Promise<MemtapStats> {
    return this.call('stats', {}, memtapStatsSchema);
  }

  /** Read-ahead, in pages beyond the demanded one: alone, and at most in a sequential stream. */
  async set(options: { minWindowPages?: number; maxWindowPages?: number }): Promise<void> {
    await this.call('set', options, z.object({}));
  }

  protected override async afterExit(): Promise<void> {
    await cleanupMount(this.mountPath);
  }
}

function sourceFields(options: ConnectOptions): Record<string, unknown> {
  const { sources, key, multicastAddress, prefetch = [] } = options;
  return { sources, keyHex: key.toString('hex'), multicastAddress, prefetch };
}
