// The events of this sfmd, in order, for whoever reads them at GET /v1/events.
//
//   effect ─▶ event ─▶ ring of the last ones ─▶ every reader's connection
//
// Invariants: an event is there after what it tells was stored; a reader sees every event once, in order, or a 'gap' first;
// a reader that does not read is cut off, and nothing is kept for it beyond its connection's buffer.

import type { ServerResponse } from 'node:http';
import { SnowflockError, type SystemEvent } from '@snowflock/protocol';
import type { Effect } from '@snowflock/cluster';

/** Some minutes of a busy system: who was away longer reads the state. */
const RING_MAX = 4096;
const READERS_MAX = 256;
/** Unsent bytes of a reader after which it is cut off; the whole ring fits. */
const BACKLOG_MAX_BYTES = 2 << 20;
/** So that both ends notice when the other is gone, and proxies do not think so. */
const KEEP_ALIVE_MS = 15_000;

interface Entry {
  readonly number: number;
  readonly event: SystemEvent;
  readonly text: string;
}

interface Reader {
  readonly response: ServerResponse;
  readonly clusterid: number | null;
}

export interface ReaderOptions {
  /** Null: everything. */
  readonly clusterid: number | null;
  /** The id of the last event it has seen; null: it wants those to come. */
  readonly after: string | null;
}

export class EventLog implements Disposable {
  readonly #epoch: number;
  readonly #ring: Entry[] = [];
  readonly #readers = new Set<Reader>();
  readonly #keepAlive: NodeJS.Timeout;
  #last = 0;

  /** `epoch`: another one for every sfmd, so that ids of the one before are known as such. */
  constructor(epoch: number) {
    this.#epoch = epoch;
    this.#keepAlive = setInterval(() => {
      for (const reader of this.#readers) this.#write(reader, ':\n\n');
    }, KEEP_ALIVE_MS).unref();
  }

  append(event: SystemEvent): void {
    const number = ++this.#last;
    const entry = { number, event, text: textOf(`${this.#epoch}.${number}`, event) };
    this.#ring.push(entry);
    if (this.#ring.length > RING_MAX) this.#ring.shift();
    for (const reader of this.#readers) if (concerns(event, reader)) this.#write(reader, entry.text);
  }

  /** Writes to the response until it closes. Throws 'unavailable' when there are too many readers. */
  serve(response: ServerResponse, { clusterid, after }: ReaderOptions): void {
    if (this.#readers.size >= READERS_MAX)
      throw new SnowflockError(
        'unavailable',
        `${READERS_MAX} readers follow the events already; close some of them`,
      );
    const reader: Reader = { response, clusterid };
    response.on('close', () => this.#readers.delete(reader));
    response.on('error', () => response.destroy());
    response.writeHead(200, { 'content-type': 'text/event-stream', 'cache-control': 'no-store' });
    response.write(':\n\n'); // so that the reader has an answer
    this.#readers.add(reader);
    for (const text of this.#missed(reader, after)) this.#write(reader, text);
  }

  [Symbol.dispose](): void {
    clearInterval(this.#keepAlive);
    for (const { response } of this.#readers) response.end();
  }

  *#missed(reader: Reader, after: string | null): Generator<string> {
    if (after === null) return;
    const [epoch, number] = after.split('.').map(Number);
    const known = epoch === this.#epoch && number !== undefined && number <= this.#last;
    const oldest = this.#ring[0]?.number ?? this.#last + 1;
    const from = known ? number + 1 : oldest;
    if (!known || from < oldest) yield textOf(`${this.#epoch}.${oldest - 1}`, { type: 'gap' });
    for (const entry of this.#ring)
      if (entry.number >= from && concerns(entry.event, reader)) yield entry.text;
  }

  #write({ response }: Reader, text: string): void {
    if (response.destroyed) return;
    response.write(text);
    if (response.writableLength > BACKLOG_MAX_BYTES) response.destroy();
  }
}

function concerns(event: SystemEvent, { clusterid }: Reader): boolean {
  return clusterid === null || ('clusterid' in event && event.clusterid === clusterid);
}

function textOf(id: string, event: SystemEvent): string {
  return `id: ${id}\nevent: ${event.type}\ndata: ${JSON.stringify(event)}\n\n`;
}

/** What an effect tells everybody; null: nothing. */
export function eventOf(effect: Effect): SystemEvent | null {
  switch (effect.type) {
    case 'granted': {
      const { ticket, allowed } = effect.grant;
      return ticket === null
        ? null
        : { type: 'ticket-granted', clusterid: effect.clusterid, ticket, allowed };
    }
    case 'vm-ended': {
      const { clusterid, vmid, host, ticket, how, reason } = effect;
      if (vmid === 0) return { type: 'master-lost', clusterid, host, reason };
      const type = how === 'exited' ? 'clone-exited' : 'clone-lost';
      return { type, clusterid, ticket: ticket ?? '', vmid, host, reason };
    }
    case 'host-up':
    case 'host-down':
    case 'cluster-started':
    case 'cluster-ended':
    case 'fork-begun':
    case 'clone-running':
    case 'ticket-ended':
    case 'vm-migrated':
      return effect;
    default:
      return null;
  }
}
