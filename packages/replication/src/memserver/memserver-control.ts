// The memserver's control operations: checks each request, then does it.

import { SnowflockError } from '@snowflock/protocol/pages';
import { PageFile } from '../checkpoint/page-file.ts';
import { PageFileDisk } from '../checkpoint/page-file-disk.ts';
import { writePageFile, type WrittenPages } from '../checkpoint/write-page-file.ts';
import { PresenceMap } from '../presence-map.ts';
import { memserverRequestSchema, type MemserverRequest } from '../control/schemas.ts';
import { keepPages } from '../checkpoint/keep-pages.ts';
import { FrozenDisk } from './frozen-disk.ts';
import { FrozenMemory } from './frozen-memory.ts';
import type { MemoryRange } from './page-map.ts';
import type { LeaseServer } from './lease.ts';
import { openMemtapFiles } from './memtap-files.ts';
import type { PageServer } from './page-server.ts';
import type { Snapshot, SnapshotContent } from './snapshot.ts';
import { unchangedPages } from './unchanged-pages.ts';
import { UpstreamMemory } from './upstream-memory.ts';

/** The frozen process connects within a millisecond of the fork; a loaded machine needs more. */
const LEASE_TIMEOUT_MS = 2000;

export interface MemserverControlOptions {
  readonly snapshot: Snapshot;
  readonly lease: LeaseServer;
  readonly pages: PageServer;
  readonly stop: () => void;
  /** Where this memserver's qemu-nbd listens. */
  readonly diskSocketPath: string;
}

export class MemserverControl {
  readonly #options: MemserverControlOptions;
  #frozenPid: number | null = null;

  constructor(options: MemserverControlOptions) {
    this.#options = options;
  }

  /** Whose memory is served; null: nobody's yet, or a checkpoint's. */
  get frozenPid(): number | null {
    return this.#frozenPid;
  }

  async serve(message: Record<string, unknown>): Promise<object> {
    const parsed = memserverRequestSchema.safeParse(message);
    if (!parsed.success)
      throw new SnowflockError('bad-request', `memserver control: ${parsed.error.message}`);
    const request = parsed.data;
    switch (request.op) {
      case 'configure':
        this.#options.pages.configure({
          key: Buffer.from(request.keyHex, 'hex'),
          multicastAddress: request.multicastAddress,
          needs: request.needs === undefined ? undefined : Buffer.from(request.needs, 'base64'),
        });
        return {};
      case 'freeze':
        return this.#freeze(request);
      case 'save':
        return this.#save(request);
      case 'open-checkpoint':
        return this.#openCheckpoint(request);
      case 'keep':
        return this.#keep(request);
      case 'relay':
        return this.#relay(request);
      case 'stats':
        return this.#stats();
      case 'learnt': {
        const { wakeUp, needs } = this.#options.pages;
        return { wakeUp: wakeUp.pages, needs: needs.encode().toString('base64') };
      }
      case 'stop':
        // after the reply has left
        setImmediate(this.#options.stop);
        return {};
      default:
        return request satisfies never;
    }
  }

  async #freeze(request: Extract<MemserverRequest, { op: 'freeze' }>): Promise<object> {
    const { lease, diskSocketPath } = this.#options;
    const { pid, disk } = request;
    this.#expectEmpty();
    await lease.waitFor(pid, { timeoutMs: LEASE_TIMEOUT_MS });
    const ranges = request.ramRanges.map(({ start, length }) => ({ start, lengthBytes: length }));
    const memory = FrozenMemory.open({ pid, ranges });
    const upstream =
      request.upstream && (await UpstreamMemory.open({ ...request.upstream, own: memory.presence }));
    const frozenDisk =
      disk === undefined ? undefined : FrozenDisk.start({ ...disk, socketPath: diskSocketPath });
    this.#frozenPid = pid;
    const installed = this.#install({ memory, upstream, disk: frozenDisk });
    const unchanged =
      request.earlierPid === undefined ? undefined : compare(request.earlierPid, { pid, ranges });
    return { ...installed, unchanged: unchanged?.encode().toString('base64') };
  }

  #openCheckpoint(request: Extract<MemserverRequest, { op: 'open-checkpoint' }>): object {
    const { checkpoint: id, ram, disk } = request;
    this.#expectEmpty();
    const memory = PageFile.open(ram.path, { id, pageCount: ram.pageCount });
    try {
      const file = disk && PageFile.open(disk.path, { id, pageCount: disk.pageCount });
      return this.#install({ memory, disk: file && new PageFileDisk(file) });
    } catch (error) {
      memory.close();
      throw error;
    }
  }

  async #keep(request: Extract<MemserverRequest, { op: 'keep' }>): Promise<object> {
    const { checkpoint: id, from, ram, disk } = request;
    this.#expectEmpty();
    const pages = await keepPages(id, { from, ramPath: ram, diskPath: disk });
    return this.#openCheckpoint({
      ...{ op: 'open-checkpoint', checkpoint: id, ram: { path: ram, pageCount: pages.ram } },
      ...(disk === undefined || pages.disk === 0 ? {} : { disk: { path: disk, pageCount: pages.disk } }),
    });
  }

  async #relay({ from, controlPath }: Extract<MemserverRequest, { op: 'relay' }>): Promise<object> {
    this.#expectEmpty();
    await this.#options.pages.passOnNeeds(controlPath);
    const { memory: upstream, disk } = await openMemtapFiles(from);
    // nothing of it is this process's own
    const none = new PresenceMap(upstream.presence.pageCount);
    const memory = { presence: none, read: () => undefined, close: () => undefined };
    return this.#install({ memory, upstream, disk });
  }

  #expectEmpty(): void {
    if (this.#options.snapshot.memory !== undefined)
      throw new SnowflockError('bad-request', 'this memserver holds a snapshot already');
  }

  #install(content: SnapshotContent): object {
    const { snapshot, pages } = this.#options;
    snapshot.install(content);
    pages.announceFrozen();
    const { presence } = snapshot;
    return { presence: presence.encode().toString('base64'), presentPages: presence.count() };
  }

  /** Writes the snapshot's pages to files, while it is served to others. */
  async #save({
    checkpoint: id,
    ramPath,
    diskPath,
  }: Extract<MemserverRequest, { op: 'save' }>): Promise<object> {
    const { snapshot } = this.#options;
    const { memory, disk } = snapshot;
    if (memory === undefined) throw new SnowflockError('bad-request', 'this memserver holds no snapshot yet');
    const ram = await writePageFile(ramPath, id, {
      presence: snapshot.presence,
      read: (target, run) => snapshot.readMemory(target, run),
    });
    let written: WrittenPages | null = null;
    if (diskPath !== undefined && disk !== undefined)
      written = await writePageFile(diskPath, id, {
        presence: PresenceMap.full(disk.pageCount),
        read: (target, run) => disk.read(target, run),
      });
    return { ram, disk: written };
  }

  #stats(): object {
    const { snapshot, lease, pages } = this.#options;
    return {
      ...pages.stats(),
      ...snapshot.counters,
      leasedPids: lease.pids,
      frozenPid: this.#frozenPid,
      sourceLost: snapshot.lostReason ?? null,
    };
  }
}

/** Undefined when the earlier fork is over: then everything is fetched. */
function compare(
  earlierPid: number,
  { pid, ranges }: { readonly pid: number; readonly ranges: readonly MemoryRange[] },
): PresenceMap | undefined {
  try {
    return unchangedPages({ pid, earlierPid }, ranges);
  } catch (error) {
    if (error instanceof SnowflockError && error.code === 'source-lost') return undefined;
    throw error;
  }
}
