// The supervisor's end of a memserver.

import { z } from 'zod';
import { SnowflockError } from '@snowflock/protocol/pages';
import {
  freezeReplySchema,
  type MemserverStats,
  memserverStatsSchema,
  wakeUpReplySchema,
} from '../control/schemas.ts';
import { connectManaged, ManagedProcess, type ProcessConnection, startManaged } from './managed-process.ts';

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
}

export interface FreezeOptions {
  /** The frozen process; it holds a lease, or takes one within two seconds. */
  readonly pid: number;
  /** Where the RAM lies in it, in the order of the RAM file. `start` is hexadecimal, `length` in bytes, whole pages. */
  readonly ramRanges: readonly { readonly start: string; readonly length: number }[];
  readonly disk?: { readonly format: 'qcow2' | 'raw'; readonly path: string; readonly sizeBytes: number };
  /** When the frozen VM is a clone: the serialised presence map of the snapshot it was cloned from. */
  readonly upstreamPresence?: Buffer;
}

export interface FreezeResult {
  /** Serialised, as `attach` of a memtap wants it. */
  readonly presence: Buffer;
  readonly presentPages: number;
}

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
    if (orphanMs !== undefined) args.push('--orphan-ms', String(orphanMs));
    const script = new URL('../memserver/main.ts', import.meta.url);
    const started = await startManaged({ name: 'memserver', script, args, controlPath, logPath });
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
  async configure(options: { readonly key: Buffer }): Promise<void> {
    await this.call('configure', { keyHex: options.key.toString('hex') }, z.object({}));
  }

  /** Takes the frozen process over and reads its page map. Once. */
  async freeze(options: FreezeOptions): Promise<FreezeResult> {
    const { upstreamPresence, ...fields } = options;
    const upstream =
      upstreamPresence === undefined ? {} : { upstreamPresence: upstreamPresence.toString('base64') };
    const reply = await this.call('freeze', { ...fields, ...upstream }, freezeReplySchema);
    return { presence: Buffer.from(reply.presence, 'base64'), presentPages: reply.presentPages };
  }

  /** RAM pages that clones waited for in their first moments, in that order. */
  async wakeUpPages(): Promise<number[]> {
    return (await this.call('wake-up', {}, wakeUpReplySchema)).pages;
  }

  async stats(): Promise<MemserverStats> {
    return this.call('stats', {}, memserverStatsSchema);
  }
}
