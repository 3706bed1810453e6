// The memserver's control operations: checks each request, then does it.

import { SnowflockError } from '@snowflock/protocol/pages';
import { memserverRequestSchema, type MemserverRequest } from '../control/schemas.ts';
import { PresenceMap } from '../presence-map.ts';
import { FrozenDisk } from './frozen-disk.ts';
import { FrozenMemory } from './frozen-memory.ts';
import type { LeaseServer } from './lease.ts';
import type { PageServer } from './page-server.ts';
import type { Snapshot } from './snapshot.ts';

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

  constructor(options: MemserverControlOptions) {
    this.#options = options;
  }

  async serve(message: Record<string, unknown>): Promise<object> {
    const parsed = memserverRequestSchema.safeParse(message);
    if (!parsed.success)
      throw new SnowflockError('bad-request', `memserver control: ${parsed.error.message}`);
    const request = parsed.data;
    switch (request.op) {
      case 'configure':
        this.#options.pages.setKey(Buffer.from(request.keyHex, 'hex'));
        return {};
      case 'freeze':
        return this.#freeze(request);
      case 'stats':
        return this.#stats();
      case 'wake-up':
        return { pages: this.#options.pages.wakeUp.pages };
      case 'stop':
        // after the reply has left
        setImmediate(this.#options.stop);
        return {};
      default:
        return request satisfies never;
    }
  }

  async #freeze(request: Extract<MemserverRequest, { op: 'freeze' }>): Promise<object> {
    const { snapshot, lease, diskSocketPath } = this.#options;
    const { pid, disk } = request;
    if (snapshot.memory !== undefined)
      throw new SnowflockError('bad-request', 'this memserver holds a snapshot already');
    await lease.waitFor(pid, { timeoutMs: LEASE_TIMEOUT_MS });
    const ranges = request.ramRanges.map(({ start, length }) => ({ start, lengthBytes: length }));
    const memory = FrozenMemory.open({ pid, ranges });
    if (request.upstreamPresence !== undefined) {
      const bytes = Buffer.from(request.upstreamPresence, 'base64');
      memory.presence.union(PresenceMap.decode(bytes, { maxPages: memory.presence.pageCount }));
    }
    const frozenDisk =
      disk === undefined ? undefined : FrozenDisk.start({ ...disk, socketPath: diskSocketPath });
    snapshot.install({ memory, disk: frozenDisk });
    return { presence: memory.presence.encode().toString('base64'), presentPages: memory.presence.count() };
  }

  #stats(): object {
    const { snapshot, lease, pages } = this.#options;
    return {
      ...pages.stats(),
      ...snapshot.counters,
      leasedPids: lease.pids,
      frozenPid: snapshot.memory?.pid ?? null,
      sourceLost: snapshot.lostReason ?? null,
    };
  }
}
