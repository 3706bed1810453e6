// A TCP proxy that breaks connections as a test wants it: between a memtap and a memserver.

import { createConnection, createServer, type AddressInfo, type Server, type Socket } from 'node:net';

export interface Faults {
  /** Passes nothing on, either way, and keeps connections open. */
  stalled?: boolean;
  /** Refuses new connections. */
  refusing?: boolean;
  /** Cuts each connection, in the midst of whatever it was, after so many bytes from the server. */
  cutAfterBytes?: number;
  /** Ends cut connections with a reset. */
  reset?: boolean;
  delayMs?: number;
  /** Flips bits in the first byte of every chunk from the server after the handshake. */
  garble?: boolean;
}

/** The server's part of the handshake in bytes: hello and welcome. */
const HANDSHAKE_BYTES = 72;

export class FaultyProxy implements AsyncDisposable {
  faults: Faults = {};
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();
  connections = 0;

  private constructor(target: { readonly port: number }) {
    this.#server = createServer((client) => this.#accept(client, target.port));
  }

  static async listen(target: { readonly port: number }): Promise<FaultyProxy> {
    const proxy = new FaultyProxy(target);
    await new Promise<void>((resolve) => proxy.#server.listen(0, '127.0.0.1', resolve));
    return proxy;
  }

  get port(): number {
    return (this.#server.address() as AddressInfo).port;
  }

  /** Breaks all connections there are. */
  cutAll(): void {
    for (const socket of this.#sockets) this.#end(socket);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const socket of this.#sockets) socket.destroy();
    await new Promise((resolve) => this.#server.close(resolve));
  }

  #end(socket: Socket): void {
    if (this.faults.reset === true) socket.resetAndDestroy();
    else socket.destroy();
  }

  #accept(client: Socket, port: number): void {
    if (this.faults.refusing === true) {
      client.destroy();
      return;
    }
    this.connections++;
    const server = createConnection({ port, host: '127.0.0.1', noDelay: true });
    client.setNoDelay(true);
    for (const [from, to] of [
      [client, server],
      [server, client],
    ] as const) {
      this.#sockets.add(from);
      from.on('error', () => from.destroy());
      from.on('close', () => {
        this.#sockets.delete(from);
        to.destroy();
      });
    }
    client.on('data', (chunk: Buffer) => this.#pass(server, chunk));
    let sent = 0;
    server.on('data', (chunk: Buffer) => {
      const { cutAfterBytes = Infinity, garble } = this.faults;
      const left = cutAfterBytes - sent;
      if (garble === true && sent >= HANDSHAKE_BYTES) chunk[0] = (chunk[0] ?? 0) ^ 0xa5;
      sent += chunk.length;
      this.#pass(
        client,
        chunk.subarray(0, Math.max(0, left)),
        () => left < chunk.length && this.#end(client),
      );
    });
  }

  #pass(to: Socket, chunk: Buffer, then: () => void = () => undefined): void {
    if (this.faults.stalled === true) return;
    const send = (): void => {
      if (!to.destroyed) to.write(chunk, then);
    };
    if (this.faults.delayMs === undefined) send();
    else setTimeout(send, this.faults.delayMs);
  }
}
