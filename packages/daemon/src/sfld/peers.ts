// Connections from this host to the other daemons: kept alive, so that a fork pays for no handshake.
// Which hosts are down is what sfmd says of them: a connection that was open before its cable was pulled tells nothing for
// minutes.

import { ControlClient, SnowflockError, type HostReportReply, type TlsIdentity } from '@snowflock/protocol';

export class Peers implements Disposable {
  #tls: TlsIdentity;
  readonly #clients = new Map<string, ControlClient>();
  /** By host; aborted while it is down. */
  readonly #down = new Map<string, AbortController>();

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

  /** For requests to a host: aborts when it is, or goes, down. */
  downSignal(host: string): AbortSignal {
    return this.#controller(host).signal;
  }

  /** What sfmd knows of the hosts. */
  setHosts(hosts: HostReportReply['hosts']): void {
    for (const { host, up } of hosts) {
      const controller = this.#controller(host);
      if (!up) controller.abort(new SnowflockError('host-down', 'it stopped answering'));
      else if (controller.signal.aborted) this.#down.delete(host);
    }
  }

  /** To be called when more certificates are revoked. */
  dropRevoked(): void {
    for (const client of this.#clients.values()) client.dropRevoked();
  }

  /** Another certificate for the connections that are made from now on. */
  renewTls(tls: TlsIdentity): void {
    this.#tls = { ...this.#tls, ...tls };
    for (const client of this.#clients.values()) client.renewTls(tls);
  }

  [Symbol.dispose](): void {
    for (const client of this.#clients.values()) client.close();
    this.#clients.clear();
  }

  #controller(host: string): AbortController {
    const known = this.#down.get(host) ?? new AbortController();
    this.#down.set(host, known);
    return known;
  }
}
