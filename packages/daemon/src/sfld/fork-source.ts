// The forking VM's side of one ticket: the memserver that will own the frozen memory and disk of the fork.
//
//   preparing ──▶ ready ──freeze──▶ serving ──dispose──▶ gone        ready or serving: adopted by the next sfld
//
// Prepared when the ticket is granted, so that a fork does not wait for a process to start.

import { randomBytes } from 'node:crypto';
import { mkdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { PAGE_KEY_BYTES, SnowflockError } from '@snowflock/protocol';
import {
  MemserverProcess,
  type FreezeResult,
  type KeepOptions,
  type Learnt,
  type MemserverStats,
} from '@snowflock/replication';
import { isRunning, markProcess, type FrozenVm, type RamRange } from '@snowflock/vm';
import { ticketDirectory, vmDirectories, type HostContext } from './context.ts';
import type { SourceEntry } from './journal.ts';
import { multicastAddressOf } from './multicast-address.ts';
import type { Kept } from './sweep.ts';

export interface ForkSourceOptions {
  readonly ticket: string;
  readonly clusterid: number;
  readonly owner: number;
  readonly upstream: string | null;
  /** Hosts that may have the key; all if not said. */
  readonly targets?: string[] | null | undefined;
  /** Of files that it will serve, which go with it. */
  readonly pagesDirectory?: string | null;
  /** Of this host; absent: pages go by unicast. */
  readonly multicastHost?: string | undefined;
  /** What clones of earlier forks needed; absent: hosts are not told what others need. */
  readonly needs?: Promise<Buffer> | undefined;
}

/** What a clone was itself cloned with, on its host. */
export interface Upstream {
  readonly ticket: string;
  /** The file that its memtap serves. */
  readonly ramPath: string;
  /** Which pages that snapshot has. */
  readonly presencePath: string;
}

export class ForkSource implements AsyncDisposable {
  readonly ticket: string;
  readonly clusterid: number;
  /** vmid of the VM that forks. */
  readonly owner: number;
  /** The ticket that it was itself cloned with: the snapshot is read from that one's memtap. Null: it is a master VM. */
  readonly upstream: string | null;
  /** Proves to memserver and memtaps that the other belongs to this fork. */
  readonly key: Buffer;
  readonly leasePath: string;
  readonly #context: HostContext;
  readonly #directory: string;
  readonly #memserver: Promise<MemserverProcess>;
  #entry: SourceEntry;
  /** Null before the fork. When its VM has gone to another host, the frozen copy is nobody's child. */
  #frozenPid: number | null = null;

  private constructor(
    context: HostContext,
    entry: SourceEntry,
    options: Pick<ForkSourceOptions, 'multicastHost' | 'needs'> = {},
  ) {
    this.#context = context;
    this.#entry = entry;
    this.ticket = entry.ticket;
    this.clusterid = entry.clusterid;
    this.owner = entry.owner;
    this.upstream = entry.upstream;
    this.key = Buffer.from(entry.keyHex, 'hex');
    this.#directory = join(context.runDir, 's', ticketDirectory(entry.ticket));
    this.leasePath = join(this.#directory, 'lease');
    this.#memserver = entry.memserver ? this.#adopt(entry.memserver) : this.#start(options);
    this.#memserver.catch(() => undefined); // reported by whoever forks; until then nobody waits
  }

  static prepare(context: HostContext, options: ForkSourceOptions): ForkSource {
    const { targets = null, pagesDirectory = null, multicastHost, needs, ...of } = options;
    const keyHex = randomBytes(PAGE_KEY_BYTES).toString('hex');
    const entry: SourceEntry = { kind: 'source', ...of, targets, pagesDirectory, keyHex, memserver: null };
    return new ForkSource(context, entry, { multicastHost, needs });
  }

  /** Takes over what the sfld before this one had. Throws when its memserver is gone. */
  static async adopt(context: HostContext, entry: SourceEntry): Promise<ForkSource> {
    if (!entry.memserver || !isRunning(entry.memserver))
      throw new SnowflockError('source-lost', 'its memserver ended while no sfld ran here');
    const source = new ForkSource(context, entry);
    await source.ready();
    source.#frozenPid = (await source.stats())?.frozenPid ?? null;
    return source;
  }

  async #start(options: Pick<ForkSourceOptions, 'multicastHost' | 'needs'>): Promise<MemserverProcess> {
    this.#context.journal.put(this.#entry);
    await mkdir(this.#directory, { recursive: true, mode: 0o700 });
    const memserver = await MemserverProcess.start({
      controlPath: join(this.#directory, 'ctl'),
      leasePath: this.leasePath,
      listenAddress: this.#context.address,
      logPath: join(this.#context.runDir, 'memserver.log'),
      subject: { clusterid: this.clusterid, ticket: this.ticket },
    });
    try {
      const multicastAddress = await multicastAddressOf(this.#context, options.multicastHost);
      await memserver.configure({ key: this.key, multicastAddress, needs: await options.needs });
      const mark = markProcess(memserver.pid);
      if (mark) {
        this.#entry = { ...this.#entry, memserver: { ...mark, port: memserver.port } };
        this.#context.journal.put(this.#entry);
      }
      return memserver;
    } catch (error) {
      await memserver[Symbol.asyncDispose]();
      throw error;
    }
  }

  #adopt(memserver: NonNullable<SourceEntry['memserver']>): Promise<MemserverProcess> {
    const { pid, port } = memserver;
    const controlPath = join(this.#directory, 'ctl');
    return MemserverProcess.attachTo({ pid, port, controlPath, leasePath: this.leasePath });
  }

  /** Hosts that may have the key; null: all. */
  get targets(): readonly string[] | null {
    return this.#entry.targets;
  }

  async ready(): Promise<MemserverProcess> {
    return this.#memserver;
  }

  /** Whose memory is served; null: nobody's yet, or a checkpoint's. */
  get frozenPid(): number | null {
    return this.#frozenPid;
  }

  /** Takes over the frozen process. Returns where it is served and which of its pages exist. */
  async serve(
    frozen: Pick<FrozenVm, 'process' | 'disk'>,
    options: {
      ram: RamRange;
      diskBytes: number;
      upstream: Upstream | null;
      /** An earlier fork of the same VM, to find out what has not changed since. */
      earlier?: ForkSource | null;
    },
  ): Promise<FreezeResult & { port: number }> {
    const memserver = await this.#memserver;
    this.#frozenPid = frozen.process.pid;
    const earlierPid = options.earlier?.frozenPid ?? undefined;
    const result = await memserver.freeze({
      pid: frozen.process.pid,
      ramRanges: [{ start: options.ram.start.toString(16), length: options.ram.length }],
      ...(frozen.disk
        ? { disk: { format: 'qcow2' as const, path: frozen.disk.path, sizeBytes: options.diskBytes } }
        : {}),
      ...(options.upstream
        ? { upstream: { ramPath: options.upstream.ramPath, presencePath: options.upstream.presencePath } }
        : {}),
      ...(earlierPid === undefined ? {} : { earlierPid }),
    });
    return { ...result, port: memserver.port };
  }

  /** What the next fork's clones can learn from this one's; null when the memserver is gone. */
  async learnt(): Promise<Learnt | null> {
    return this.#askMemserver((memserver) => memserver.learnt());
  }

  /** Copies what a memtap of this host serves to files, and serves it from there. */
  async keepHere(files: KeepOptions): Promise<{ port: number }> {
    const memserver = await this.#memserver;
    await memserver.keep(files);
    return { port: memserver.port };
  }

  async stats(): Promise<MemserverStats | null> {
    return this.#askMemserver((memserver) => memserver.stats());
  }

  async #askMemserver<T>(ask: (memserver: MemserverProcess) => Promise<T>): Promise<T | null> {
    try {
      return await ask(await this.#memserver);
    } catch (error) {
      if (error instanceof SnowflockError) return null;
      throw error;
    }
  }

  keep(kept: Kept): void {
    if (this.#entry.memserver) kept.pids.add(this.#entry.memserver.pid);
    if (this.#frozenPid !== null) kept.pids.add(this.#frozenPid);
    kept.directories.add(this.#directory);
    if (this.#entry.pagesDirectory !== null) kept.directories.add(this.#entry.pagesDirectory);
    // Its VM may have gone to another host; what it forked is read from its disk.
    const owner = { clusterid: this.clusterid, vmid: this.owner };
    kept.directories.add(vmDirectories(this.#context, owner).state);
  }

  /** Lets go of it, for the next sfld. */
  async detach(): Promise<void> {
    const [started] = await Promise.allSettled([this.#memserver]);
    if (started.status === 'fulfilled') started.value.detach();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const [started] = await Promise.allSettled([this.#memserver]);
    if (started.status === 'fulfilled') await started.value[Symbol.asyncDispose]();
    for (const directory of [this.#directory, this.#entry.pagesDirectory])
      if (directory !== null) await rm(directory, { recursive: true, force: true });
    this.#context.journal.remove(this.#entry);
  }
}
