// The supervisor's end of a control socket: calls with deadlines, events. Owns its connection.

import { createConnection, type Socket } from 'node:net';
import { isErrorCode, SnowflockError } from '@snowflock/protocol/pages';
import { parseLine, readLines, writeLine } from './json-lines.ts';

/** Calls in flight at once; a supervisor makes a handful. */
const MAX_PENDING = 64;

interface Pending {
  readonly op: string;
  readonly resolve: (reply: Record<string, unknown>) => void;
  readonly reject: (error: SnowflockError) => void;
  readonly timer: NodeJS.Timeout;
}

export interface ControlClientOptions {
  readonly path: string;
  /** What the peer is, for messages: 'memserver', 'memtap'. */
  readonly peer: string;
  readonly timeoutMs: number;
  readonly onEvent: (event: Record<string, unknown>) => void;
}

export class ControlClient {
  readonly #socket: Socket;
  readonly #peer: string;
  readonly #pending = new Map<number, Pending>();
  readonly closed: Promise<void>;
  #nextId = 1;

  private constructor(socket: Socket, options: ControlClientOptions) {
    this.#socket = socket;
    this.#peer = options.peer;
    readLines(socket, {
      onLine: (line) => this.#receive(line, options.onEvent),
      onOverlong: () => this.#failAll('sent a line over the limit'),
    });
    this.closed = new Promise((resolve) => {
      socket.on('close', () => {
        this.#failAll('closed its control socket');
        resolve();
      });
    });
  }

  static async connect(options: ControlClientOptions): Promise<ControlClient> {
    const socket = createConnection({ path: options.path });
    await new Promise<void>((resolve, reject) => {
      const timer = setTimeout(
        () => socket.destroy(new Error('connecting took too long')),
        options.timeoutMs,
      );
      socket.once('connect', () => {
        clearTimeout(timer);
        resolve();
      });
      // stays on: errors after connecting are followed by 'close', which fails the pending calls
      socket.on('error', (error) => {
        clearTimeout(timer);
        reject(new SnowflockError('unavailable', `${options.peer} at ${options.path}: ${error.message}`));
      });
    });
    return new ControlClient(socket, options);
  }

  /** The reply without `id` and `ok`. Throws the peer's error, 'timeout', or 'unavailable' when the connection ends. */
  call(
    op: string,
    fields: object,
    options: { readonly timeoutMs: number },
  ): Promise<Record<string, unknown>> {
    if (this.#socket.destroyed)
      return Promise.reject(
        new SnowflockError('unavailable', `${this.#peer}: control connection is closed (${op})`),
      );
    if (this.#pending.size >= MAX_PENDING)
      return Promise.reject(
        new SnowflockError('unavailable', `${this.#peer}: too many calls in flight (${op})`),
      );
    const id = this.#nextId++;
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        this.#pending.delete(id);
        reject(
          new SnowflockError(
            'timeout',
            `${this.#peer} did not answer '${op}' within ${options.timeoutMs} ms`,
          ),
        );
      }, options.timeoutMs);
      this.#pending.set(id, { op, resolve, reject, timer });
      writeLine(this.#socket, { ...fields, id, op });
    });
  }

  close(): void {
    this.#socket.destroy();
  }

  #receive(line: string, onEvent: (event: Record<string, unknown>) => void): void {
    const message = parseLine(line);
    if (message === undefined) {
      this.#socket.destroy();
      return;
    }
    if (typeof message['event'] === 'string') {
      onEvent(message);
      return;
    }
    const id = message['id'];
    const pending = typeof id === 'number' ? this.#pending.get(id) : undefined;
    // undefined: the answer to a call that ran out of time
    if (pending === undefined) return;
    this.#pending.delete(id as number);
    clearTimeout(pending.timer);
    const { id: _id, ok, error, ...rest } = message;
    if (ok === true) pending.resolve(rest);
    else pending.reject(remoteError(this.#peer, pending.op, error));
  }

  #failAll(what: string): void {
    for (const { reject, timer, op } of this.#pending.values()) {
      clearTimeout(timer);
      reject(new SnowflockError('unavailable', `${this.#peer} ${what} while '${op}' was under way`));
    }
    this.#pending.clear();
  }
}

function remoteError(peer: string, op: string, error: unknown): SnowflockError {
  const { code, message } = (typeof error === 'object' && error !== null ? error : {}) as Record<
    string,
    unknown
  >;
  const text = typeof message === 'string' ? message : 'no reason given';
  return new SnowflockError(isErrorCode(code) ? code : 'internal', `${peer}: ${op}: ${text}`);
}
