// Hosts as sfmd sees them: reports every two seconds and answers at once, over mutual TLS, each with its own certificate. No VM
// runs anywhere; what is measured is sfmd.

import { randomUUID } from 'node:crypto';
import { once } from 'node:events';
import * as https from 'node:https';
import type { AddressInfo } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import type { ControlClient } from '@snowflock/protocol';
import { HostReportReply, type TlsIdentity } from '@snowflock/protocol';

const REPORT_INTERVAL_MS = 2000;
const REPORT_TIMEOUT_MS = 5000;

export class SimulatedHost implements AsyncDisposable {
  readonly name: string;
  /** To sfmd, as this host. */
  readonly sfmd: ControlClient;
  readonly #server: https.Server;
  readonly #instance = randomUUID();
  readonly #vms = new Set<string>();
  readonly #tickets = new Map<string, string[]>();
  readonly #stopping = new AbortController();
  #reporting: Promise<void> = Promise.resolve();

  private constructor(name: string, tls: TlsIdentity, sfmd: ControlClient) {
    this.name = name;
    this.sfmd = sfmd;
    this.#server = https.createServer(
      { ...tls, requestCert: true, rejectUnauthorized: true, minVersion: 'TLSv1.3' },
      (request, response) => {
        const chunks: Buffer[] = [];
        request.on('data', (chunk: Buffer) => chunks.push(chunk));
        request.on('end', () => {
          const reply = this.#answer(
            request.method ?? '',
            request.url ?? '',
            Buffer.concat(chunks).toString(),
          );
          if (reply === null) response.writeHead(204).end();
          else response.writeHead(200, { 'content-type': 'application/json' }).end(JSON.stringify(reply));
        });
      },
    );
  }

  static async start(options: {
    name: string;
    tls: TlsIdentity;
    sfmd: ControlClient;
  }): Promise<SimulatedHost> {
    const host = new SimulatedHost(options.name, options.tls, options.sfmd);
    host.#server.listen({ host: '127.0.0.1', port: 0 });
    await once(host.#server, 'listening');
    await host.report();
    return host;
  }

  /** Begins at a moment of its own, as real hosts do. */
  keepReporting(): void {
    this.#reporting = (async () => {
      await sleep(Math.random() * REPORT_INTERVAL_MS);
      while (!this.#stopping.signal.aborted) {
        await this.report().catch(() => undefined); // sfmd is being restarted
        await sleep(REPORT_INTERVAL_MS);
      }
    })();
  }

  async report(): Promise<void> {
    const { port } = this.#server.address() as AddressInfo;
    await this.sfmd.request({
      method: 'PUT',
      path: `/v1/hosts/${this.name}`,
      body: {
        ...{ address: '127.0.0.1', sfldPort: port, accel: 'tcg' },
        ...{ instance: this.#instance, vms: [...this.#vms] },
      },
      reply: HostReportReply,
      timeoutMs: REPORT_TIMEOUT_MS,
    });
  }

  stop(): void {
    this.#stopping.abort();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.stop();
    await this.#reporting;
    this.sfmd.close();
    this.#server.closeAllConnections();
    this.#server.close();
  }

  #answer(method: string, url: string, text: string): object | null {
    if (method === 'DELETE') {
      const [, , kind, id = ''] = url.split('/');
      if (kind === 'tickets') for (const vm of this.#tickets.get(id) ?? []) this.#vms.delete(vm);
      if (kind === 'vms') this.#vms.delete(id);
      if (kind === 'clusters') for (const vm of this.#vms) if (vm.startsWith(`${id}:`)) this.#vms.delete(vm);
      return null;
    }
    const body = JSON.parse(text) as { clusterid: number; ticket?: string; clones?: { vmid: number }[] };
    const vms = (body.clones ?? []).map(({ vmid }) => `${body.clusterid}:${vmid}`);
    if (url === '/v1/vms') vms.push(`${body.clusterid}:0`);
    for (const vm of vms) this.#vms.add(vm);
    if (body.ticket !== undefined && vms.length > 0) this.#tickets.set(body.ticket, vms);
    return url === '/v1/vms' ? { diskBytes: 0 } : null;
  }
}
