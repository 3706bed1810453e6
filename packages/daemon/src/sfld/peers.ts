// Connections from this host to the other daemons: kept alive, so that a fork pays for no handshake.

import { ControlClient, type TlsIdentity } from '@snowflock/protocol';

export class Peers implements Disposable {
  readonly #tls: TlsIdentity;
  readonly #clients = new Map<string, ControlClient>();

  constructor(tls: TlsIdentity) {
    this.#tls = tls;
  }

  /** The sfld (or sfmd) of a host; `host` is the name its certificate must have. */
  client(target: { host: string; address: string; port: number }): ControlClient {
    const key = `${target.host}/${target.address}:${target.port}`;
    let client = this.#clients.get(key);
    if (!client) {
      client = new ControlClient({
        address: target.address,
        port: target.port,
        tls: this.#tls,
        host: target.host,
      });
      this.#clients.set(key, client);
    }
    return client;
  }

  [Symbol.dispose](): void {
    for (const client of this.#clients.values()) client.close();
    this.#clients.clear();
  }
}
