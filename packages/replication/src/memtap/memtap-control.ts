// The memtap's control operations: checks each request, then does it.

import { PAGE_BYTES, PageRegion, SnowflockError } from '@snowflock/protocol/pages';
import { memtapRequestSchema, type MemtapRequest } from '../control/schemas.ts';
import { encodeNeeds } from '../needs.ts';
import { PRESENCE_MAX_PAGES, PresenceMap } from '../presence-map.ts';
import type { SourceOptions } from './fetcher.ts';
import type { MemtapMount } from './memtap-mount.ts';

export class MemtapControl {
  readonly #mount: MemtapMount;
  readonly #stop: () => void;

  constructor(options: { readonly mount: MemtapMount; readonly stop: () => void }) {
    this.#mount = options.mount;
    this.#stop = options.stop;
  }

  async serve(message: Record<string, unknown>): Promise<object> {
    const parsed = memtapRequestSchema.safeParse(message);
    if (!parsed.success) throw new SnowflockError('bad-request', `memtap control: ${parsed.error.message}`);
    const request = parsed.data;
    switch (request.op) {
      case 'connect':
        this.#mount.fetcher.connect(sourceOf(request));
        return {};
      case 'attach':
        this.#attach(request);
        return {};
      case 'move':
        this.#mount.fetcher.move(sourceOf(request));
        return {};
      case 'prefetch':
        this.#mount.fetcher.fetchAhead(request.pages);
        return {};
      case 'push':
        this.#mount.fetcher.push();
        return {};
      case 'needed': {
        const { pages, earlier } = await this.#mount.fetcher.needs.next(request.from);
        return { needs: encodeNeeds(pages).toString('base64'), earlier };
      }
      case 'rehearsed':
        await this.#mount.rehearsed;
        return {};
      case 'arrived':
        return {
          ram: this.#mount.arrived(PageRegion.ram).encode().toString('base64'),
          disk: this.#mount.arrived(PageRegion.disk).encode().toString('base64'),
        };
      case 'stats':
        return this.#mount.stats();
      case 'set':
        this.#mount.setWindow({ min: request.minWindowPages, max: request.maxWindowPages });
        return {};
      case 'stop':
        // after the reply has left
        setImmediate(this.#stop);
        return {};
      default:
        return request satisfies never;
    }
  }

  #attach(request: Extract<MemtapRequest, { op: 'attach' }>): void {
    const maxPages = Math.min(PRESENCE_MAX_PAGES, this.#mount.ramBytes / PAGE_BYTES);
    const presence = PresenceMap.decode(Buffer.from(request.presence, 'base64'), { maxPages });
    const near = request.near && {
      path: request.near.ramPath,
      pages: PresenceMap.decode(Buffer.from(request.near.pages, 'base64'), { maxPages }),
    };
    this.#mount.fetcher.attach({ ...sourceOf(request), presence, near });
  }
}

function sourceOf(request: Extract<MemtapRequest, { op: 'connect' | 'attach' | 'move' }>): SourceOptions {
  const { sources, keyHex, multicastAddress, prefetch } = request;
  return { sources, key: Buffer.from(keyHex, 'hex'), multicastAddress, prefetch };
}
