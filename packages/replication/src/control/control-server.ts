// The control socket of a memserver or memtap: requests {id, op, ...} answered by {id, ok: true, ...} or
// {id, error: {code, message}}, and unsolicited {event, ...} to everyone who is connected.
//
// Owns the listening unix socket and its connections. The socket file has mode 0600: who may connect owns the process.

import { chmodSync, rmSync } from 'node:fs';
import { createServer, type Server, type Socket } from 'node:net';
import { toSnowflockError } from '@snowflock/protocol/pages';
import { parseLine, readLines, writeLine } from './json-lines.ts';

/** A supervisor, its successor during a restart, and a person who looks: more is a leak. */
const MAX_CONNECTIONS = 16;

/** Serves one request (the message without its id); the result's fields go into the reply. Throws SnowflockError. */
export type ControlHandler = (request: Record<string, unknown>) => Promise<object>;

export class ControlServer {
  readonly #path: string;
  readonly #handler: ControlHandler;
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();

  constructor(options: { readonly path: string; readonly handler: ControlHandler }) {
    this.#path = options.path;
    this.#handler = options.handler;
    this.#server = createServer((socket) => this.#accept(socket));
    this.#server.maxConnections = MAX_CONNECTIONS;
  }

  get connectionCount(): number {
    return this.#sockets.size;
  }

  async listen(): Promise<void> {
    rmSync(this.#path, { force: true });
    await new Promise<void>((resolve, reject) => {
      this.#server.once('error', reject);
      this.#server.listen(this.#path, resolve);
    });
    chmodSync(this.#path, 0o600);
  }

  /** Tells everyone who is connected; who connects later asks with `stats`. */
  broadcast(event: { readonly event: string } & Record<string, unknown>): void {
    for (const socket of this.#sockets) writeLine(socket, event);
  }

  /** Stops listening, lets replies under way leave, and closes. */
  async close(): Promise<void> {
    const closed = new Promise<void>((resolve) => this.#server.close(() => resolve()));
    for (const socket of this.#sockets) socket.destroySoon();
    await closed;
    rmSync(this.#path, { force: true });
  }

  #accept(socket: Socket): void {
    this.#sockets.add(socket);
    socket.on('close', () => this.#sockets.delete(socket));
    // a peer that goes away mid-reply is no error of ours; 'close' follows
    socket.on('error', () => socket.destroy());
    readLines(socket, {
      onLine: (line) => void this.#serve(socket, line),
      onOverlong: () => console.error('control: a peer sent a line over the limit and was dropped'),
    });
  }

  async #serve(socket: Socket, line: string): Promise<void> {
    const message = parseLine(line);
    const id = message?.['id'];
    if (message === undefined || (typeof id !== 'number' && typeof id !== 'string')) {
      socket.destroy();
      return;
    }
    try {
      writeLine(socket, { id, ok: true, ...(await this.#handler(message)) });
    } catch (thrown) {
      const error = toSnowflockError(thrown);
      if (error.code === 'internal') console.error('control:', thrown);
      writeLine(socket, { id, error: { code: error.code, message: error.message } });
    }
  }
}
