// The lease: what ties a frozen process's life to this memserver's.
//
// The frozen process connects to the lease socket right after it was forked, sends its pid as one line, and exits when
// the connection closes. So when the memserver dies, by any means, the frozen image goes too.
//
//   connected --pid line--> leased --closed--> lost
//
// Owns the listening socket and every connection on it.

import { chmodSync, rmSync } from 'node:fs';
import { createServer, type Server, type Socket } from 'node:net';
import { SnowflockError } from '@snowflock/protocol/pages';

/** One snapshot, one frozen process; a few more so that a stray connection cannot lock it out. */
const MAX_CONNECTIONS = 4;
const PID_LINE_MAX_BYTES = 16;

export class LeaseServer {
  readonly #path: string;
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();
  readonly #leased = new Map<number, Socket>();
  readonly #waiting = new Set<() => void>();
  readonly #onLost: (pid: number) => void;

  constructor(options: { readonly path: string; readonly onLost: (pid: number) => void }) {
    this.#path = options.path;
    this.#onLost = options.onLost;
    this.#server = createServer((socket) => this.#accept(socket));
    this.#server.maxConnections = MAX_CONNECTIONS;
  }

  async listen(): Promise<void> {
    rmSync(this.#path, { force: true });
    await new Promise<void>((resolve, reject) => {
      this.#server.once('error', reject);
      this.#server.listen(this.#path, resolve);
    });
    chmodSync(this.#path, 0o600);
  }

  get pids(): readonly number[] {
    return [...this.#leased.keys()];
  }

  /** Resolves once `pid` holds a lease: the fork's reply may reach us before the frozen process's own connection. */
  async waitFor(pid: number, options: { readonly timeoutMs: number }): Promise<void> {
    if (this.#leased.has(pid)) return;
    await new Promise<void>((resolve, reject) => {
      const check = (): void => {
        if (!this.#leased.has(pid)) return;
        clearTimeout(timer);
        this.#waiting.delete(check);
        resolve();
      };
      const timer = setTimeout(() => {
        this.#waiting.delete(check);
        reject(
          new SnowflockError(
            'source-lost',
            `process ${pid} did not take a lease within ${options.timeoutMs} ms`,
          ),
        );
      }, options.timeoutMs);
      this.#waiting.add(check);
    });
  }

  /** Ends every lease; frozen processes exit. */
  close(): void {
    this.#server.close();
    for (const socket of this.#sockets) socket.destroy();
    rmSync(this.#path, { force: true });
  }

  #accept(socket: Socket): void {
    this.#sockets.add(socket);
    let line = '';
    let pid: number | undefined;
    socket.on('error', () => socket.destroy());
    socket.on('close', () => {
      this.#sockets.delete(socket);
      if (pid === undefined || this.#leased.get(pid) !== socket) return;
      this.#leased.delete(pid);
      this.#onLost(pid);
    });
    socket.on('data', (chunk: Buffer) => {
      if (pid !== undefined) return;
      line += chunk.toString('latin1');
      if (!line.includes('\n') && line.length <= PID_LINE_MAX_BYTES) return;
      const match = /^([1-9][0-9]{0,9})\n/.exec(line);
      if (match === null || this.#leased.has(Number(match[1]))) {
        socket.destroy();
        return;
      }
      pid = Number(match[1]);
      this.#leased.set(pid, socket);
      for (const check of [...this.#waiting]) check();
    });
  }
}
