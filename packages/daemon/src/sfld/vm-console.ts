// The serial console of one VM: clients on one side, QEMU's socket for it on the other. QEMU serves one connection, the others wait there.
//
//   joined ◀──hold, release──▶ output only ──the VM goes to another host: its QEMU here ends──▶ somebody else's (client-relay.ts)
//
// Invariants: the client has all that the guest has printed here before anything of what it prints on its next host; there, QEMU has a
// connection before the guest's first instruction, since what is printed to nobody is lost.

import { randomUUID } from 'node:crypto';
import { connect, type Socket } from 'node:net';
import type { Duplex } from 'node:stream';
import { setTimeout as sleep } from 'node:timers/promises';
import { SnowflockError } from '@snowflock/protocol';
import { EXPECTED_TIMEOUT_MS, type LetGo } from './client-relay.ts';

/** Input that is on its way to the guest when nothing follows it: QEMU takes it some bytes at a time, as the guest reads. */
const DRAIN_MS = 100;
const NOTHING = Buffer.alloc(0);

export class VmConsole {
  readonly #path: string;
  /** In the order in which QEMU serves them. */
  readonly #clients = new Map<Duplex, Socket>();
  #held = false;
  /** The client that the host that has the VM next expects. */
  #handedOver: { readonly client: Duplex; readonly token: string } | null = null;
  #expected: { readonly token: string; readonly socket: Socket } | null = null;
  #relay: ((client: LetGo) => void) | null = null;

  constructor(path: string) {
    this.#path = path;
  }

  /** Throws 'interrupted' unless a client is expected with this token. */
  assertExpected(token: string): void {
    if (this.#expected?.token !== token)
      throw new SnowflockError('interrupted', 'this client of the console is not known here; connect again');
  }

  serve(client: Duplex, token: string | null = null): void {
    const socket = (token !== null && this.#takeExpected(token)) || connect(this.#path);
    this.#clients.set(client, socket);
    socket.on('error', () => undefined); // 'close' follows
    client.on('close', () => socket.destroy());
    socket.on('close', () => this.#onClose(client));
    socket.pipe(client, { end: false });
    if (!this.#held) client.pipe(socket);
  }

  /** Nothing is read of its clients until `release`; resolves when the guest has had time to take what was. */
  async hold(): Promise<void> {
    this.#held = true;
    for (const [client, socket] of this.#clients) client.unpipe(socket);
    if (this.#clients.size > 0) await sleep(DRAIN_MS);
  }

  release(): void {
    this.#held = false;
    if (this.#relay === null) for (const [client, socket] of this.#clients) client.pipe(socket);
  }

  /** For the host that has the VM next, while it is held: the token of the client that QEMU serves. */
  handOver(): string | undefined {
    const [client] = this.#clients.keys();
    this.#handedOver = client ? { client, token: randomUUID() } : null;
    return this.#handedOver?.token;
  }

  /** Before the guest's first instruction here. */
  expect(token: string): void {
    const socket = connect(this.#path); // QEMU holds its output back while nobody reads
    socket.on('error', () => undefined); // it has ended
    this.#expected = { token, socket };
    setTimeout(() => this.#takeExpected(token)?.destroy(), EXPECTED_TIMEOUT_MS).unref();
  }

  /** The VM runs elsewhere: `relay` gets each client when its QEMU here has ended and all of its output has been passed on. */
  letGo(relay: (client: LetGo) => void): void {
    this.#relay = relay;
  }

  #takeExpected(token: string): Socket | null {
    if (this.#expected?.token !== token) return null;
    const { socket } = this.#expected;
    this.#expected = null;
    return socket;
  }

  #onClose(connection: Duplex): void {
    this.#clients.get(connection)?.unpipe(connection);
    this.#clients.delete(connection);
    if (this.#relay === null) return void connection.end();
    const token = this.#handedOver?.client === connection ? this.#handedOver.token : null;
    this.#relay({ connection, rest: NOTHING, token });
  }
}
