// The parent's side of one ticket: the memserver that will own the frozen memory and disk of the fork.
//
//   preparing ──▶ ready ──freeze──▶ serving ──dispose──▶ gone
//
// Prepared when the ticket is granted, so that a fork does not wait for a process to start.

import { randomBytes } from 'node:crypto';
import { mkdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { PAGE_KEY_BYTES, SnowflockError } from '@snowflock/protocol';
import { MemserverProcess, type MemserverStats } from '@snowflock/replication';
import type { FrozenVm, RamRange } from '@snowflock/vm';
import { ticketDirectory, type HostContext } from './context.ts';

export class ForkSource implements AsyncDisposable {
  readonly ticket: string;
  readonly clusterid: number;
  /** Proves to memserver and memtaps that the other belongs to this fork. */
  readonly key = randomBytes(PAGE_KEY_BYTES);
  readonly leasePath: string;
  readonly #directory: string;
  readonly #memserver: Promise<MemserverProcess>;

  constructor(context: HostContext, options: { ticket: string; clusterid: number }) {
    this.ticket = options.ticket;
    this.clusterid = options.clusterid;
    this.#directory = join(context.runDir, 's', ticketDirectory(options.ticket));
    this.leasePath = join(this.#directory, 'lease');
    this.#memserver = this.#start(context);
    this.#memserver.catch(() => undefined); // reported by whoever forks; until then nobody waits
  }

  async #start(context: HostContext): Promise<MemserverProcess> {
    await mkdir(this.#directory, { recursive: true, mode: 0o700 });
    const memserver = await MemserverProcess.start({
      controlPath: join(this.#directory, 'ctl'),
      leasePath: this.leasePath,
      listenAddress: context.address,
      logPath: join(context.runDir, 'memserver.log'),
    });
    await memserver.configure({ key: this.key });
    return memserver;
  }

  async ready(): Promise<MemserverProcess> {
    return this.#memserver;
  }

  /** Takes over the frozen process. Returns where it is served and which of its pages exist. */
  async serve(
    frozen: FrozenVm,
    options: { ram: RamRange; diskBytes: number },
  ): Promise<{ port: number; presence: Buffer; presentPages: number }> {
    const memserver = await this.#memserver;
    const { presence, presentPages } = await memserver.freeze({
      pid: frozen.process.pid,
      ramRanges: [{ start: options.ram.start.toString(16), length: options.ram.length }],
      ...(frozen.disk
        ? { disk: { format: 'qcow2' as const, path: frozen.disk.path, sizeBytes: options.diskBytes } }
        : {}),
    });
    return { port: memserver.port, presence, presentPages };
  }

  /** What this fork's clones needed first; empty when the memserver is gone. */
  async wakeUpPages(): Promise<number[]> {
    try {
      return await (await this.#memserver).wakeUpPages();
    } catch (error) {
      if (error instanceof SnowflockError) return [];
      throw error;
    }
  }

  async stats(): Promise<MemserverStats | null> {
    try {
      return await (await this.#memserver).stats();
    } catch (error) {
      if (error instanceof SnowflockError) return null;
      throw error;
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const [started] = await Promise.allSettled([this.#memserver]);
    if (started.status === 'fulfilled') await started.value[Symbol.asyncDispose]();
    await rm(this.#directory, { recursive: true, force: true });
  }
}
