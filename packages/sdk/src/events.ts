// What happens in a system, as an async iterator over GET /v1/events.
//
//   open ─▶ connected ─▶ events ─▶ closed (by its owner, or its signal)
//               ▲            │ the connection breaks
//               └── again, with the last event's id, for RESUME_MS ──▶ 'unavailable'
//
// Invariants: every event comes once, in order, or a 'gap' first; what is not read is not read from the daemon either, beyond
// a connection's buffers (then the daemon cuts the reader off, and the next connection begins with what is still known).

import type { IncomingMessage } from 'node:http';
import { setTimeout as sleep } from 'node:timers/promises';
import { SnowflockError, SystemEvent, toSnowflockError } from '@snowflock/protocol';
import type { Reach } from './reach.ts';
import type { CallOptions } from './call-options.ts';

const CONNECT_TIMEOUT_MS = 10_000;
/** sfmd is started again in less. */
const RESUME_MS = 30_000;
const RESUME_PAUSE_MS = 250;
/** An event is some hundred bytes; a reason in it is bounded. */
const BLOCK_MAX_CHARACTERS = 64 << 10;

export interface EventOptions extends CallOptions {
  /** Only of this cluster. */
  readonly clusterid?: number;
}

export class EventStream implements AsyncIterable<SystemEvent>, AsyncDisposable {
  readonly #reach: Reach;
  readonly #path: string;
  readonly #closing = new AbortController();
  readonly #signal: AbortSignal;
  #response: IncomingMessage | undefined;
  #lastId: string | undefined;

  private constructor(reach: Reach, { clusterid, signal }: EventOptions) {
    this.#reach = reach;
    this.#path = `/events${clusterid === undefined ? '' : `?cluster=${clusterid}`}`;
    this.#signal = signal ? AbortSignal.any([signal, this.#closing.signal]) : this.#closing.signal;
  }

  /** Resolves when it is connected: everything that happens from then on is told. */
  static async open(reach: Reach, options: EventOptions): Promise<EventStream> {
    const stream = new EventStream(reach, options);
    stream.#response = await stream.#connect();
    return stream;
  }

  /** Ends when it is closed or its signal aborts. */
  async *[Symbol.asyncIterator](): AsyncGenerator<SystemEvent, void, undefined> {
    while (!this.#signal.aborted) {
      const response = this.#response ?? (await this.#resume());
      this.#response = response;
      if (!response) return;
      try {
        for await (const { id, event } of blocksOf(response)) {
          if (id !== undefined) this.#lastId = id;
          yield event;
        }
      } catch (error) {
        if (error instanceof SnowflockError) throw error; // what came made no sense
      } finally {
        response.destroy();
        this.#response = undefined;
      }
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#closing.abort();
    this.#response?.destroy();
  }

  async #connect(): Promise<IncomingMessage> {
    const response = await this.#reach.stream({
      path: this.#path,
      headers: this.#lastId === undefined ? {} : { 'last-event-id': this.#lastId },
      timeoutMs: CONNECT_TIMEOUT_MS,
      signal: this.#signal,
    });
    const end = (): void => void response.destroy();
    this.#signal.addEventListener('abort', end, { once: true });
    response.once('close', () => this.#signal.removeEventListener('abort', end));
    response.on('error', () => undefined); // its reader is told
    return response;
  }

  /** Undefined: it was closed meanwhile. */
  async #resume(): Promise<IncomingMessage | undefined> {
    const deadline = performance.now() + RESUME_MS;
    for (;;) {
      try {
        return await this.#connect();
      } catch (error) {
        if (this.#signal.aborted) return undefined;
        if (performance.now() >= deadline) throw toSnowflockError(error);
      }
      await sleep(RESUME_PAUSE_MS, undefined, { signal: this.#signal }).catch(() => undefined); // closed
    }
  }
}

/** The events of a text/event-stream; comments are skipped. */
async function* blocksOf(
  response: IncomingMessage,
): AsyncGenerator<{ readonly id: string | undefined; readonly event: SystemEvent }> {
  response.setEncoding('utf8');
  let text = '';
  for await (const chunk of response as AsyncIterable<string>) {
    text += chunk;
    for (let end = text.indexOf('\n\n'); end >= 0; end = text.indexOf('\n\n')) {
      const block = text.slice(0, end);
      text = text.slice(end + 2);
      const field = (name: string): string | undefined =>
        block
          .split('\n')
          .flatMap((line) => (line.startsWith(`${name}: `) ? [line.slice(name.length + 2)] : []))[0];
      const data = field('data');
      if (data !== undefined) yield { id: field('id'), event: parseEvent(data) };
    }
    if (text.length > BLOCK_MAX_CHARACTERS)
      throw new SnowflockError('unavailable', `an event is longer than ${BLOCK_MAX_CHARACTERS} characters`);
  }
}

function parseEvent(data: string): SystemEvent {
  try {
    return SystemEvent.parse(JSON.parse(data));
  } catch (error) {
    const what = 'an event is not what was expected; do both ends run the same SnowFlock release?';
    throw new SnowflockError('unavailable', what, { cause: error });
  }
}
