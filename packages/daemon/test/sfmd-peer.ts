// A host as sfmd sees it: the sfld routes over real mutual TLS, with failures on demand.

import { randomUUID } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import {
  HostReportReply,
  ControlClient,
  parseVmRef,
  PrepareClones,
  PrepareSource,
  SnowflockError,
  StartMaster,
  type TlsIdentity,
} from '@snowflock/protocol';
import { createControlServer, type ControlServer } from '../src/http.ts';
import { noContent, parseInput } from '../src/http-routes.ts';
import { silentLog } from '../src/log.ts';

const MASTER = { config: { roles: ['master'] as const } };

export interface Behaviour {
  failMaster?: string;
  failClones?: string;
  failDestroy?: string;
  clonesDelayMs?: number;
  destroyDelayMs?: number;
  onMaster?: () => void;
  /** Reports name its VMs. */
  listVms?: boolean;
}

export class FakeHost implements AsyncDisposable {
  readonly host: string;
  readonly behaviour: Behaviour = {};
  /** What stands on it, as sfld's leak check would count it. */
  readonly masters = new Set<number>();
  readonly sources = new Map<string, number>();
  readonly tickets = new Map<string, PrepareClones>();
  readonly calls: string[] = [];
  /** To sfmd, with this host's certificate. */
  readonly sfmd: ControlClient;
  #server: ControlServer | undefined;
  #port = 0;
  readonly #tls: TlsIdentity;
  readonly #instance = randomUUID();

  constructor(host: string, tls: TlsIdentity, sfmdPort: number) {
    this.host = host;
    this.#tls = tls;
    this.sfmd = new ControlClient({ address: '127.0.0.1', port: sfmdPort, tls, host: 'master' });
  }

  async listen(): Promise<void> {
    this.#server = await createControlServer({
      name: 'sfld',
      log: silentLog(),
      register: (app) => {
        app.addHook('onRequest', (request, _reply, done) => {
          this.calls.push(`${request.method} ${request.url}`);
          done();
        });
        app.post('/v1/vms', MASTER, (request) => {
          const { clusterid } = parseInput(StartMaster, request.body);
          if (this.behaviour.failMaster) throw new SnowflockError('no-such-image', this.behaviour.failMaster);
          this.masters.add(clusterid);
          this.behaviour.onMaster?.();
          return { diskBytes: 64 << 20 };
        });
        app.delete<{ Params: { vm: string } }>('/v1/vms/:vm', MASTER, async (request, reply) => {
          await this.#destroying();
          const { clusterid, vmid } = parseVmRef(request.params.vm);
          if (vmid === 0) this.masters.delete(clusterid);
          for (const [ticket, body] of this.tickets)
            if (body.clusterid === clusterid)
              this.tickets.set(ticket, { ...body, clones: body.clones.filter((each) => each.vmid !== vmid) });
          return noContent(reply);
        });
        app.post('/v1/sources', MASTER, (request, reply) => {
          const { ticket, clusterid } = parseInput(PrepareSource, request.body);
          this.sources.set(ticket, clusterid);
          return noContent(reply);
        });
        app.post('/v1/tickets', MASTER, async (request, reply) => {
          const body = parseInput(PrepareClones, request.body);
          await sleep(this.behaviour.clonesDelayMs ?? 0);
          if (this.behaviour.failClones) throw new SnowflockError('unavailable', this.behaviour.failClones);
          this.tickets.set(body.ticket, body);
          return noContent(reply);
        });
        app.delete<{ Params: { ticket: string } }>('/v1/tickets/:ticket', MASTER, async (request, reply) => {
          await this.#destroying();
          this.sources.delete(request.params.ticket);
          this.tickets.delete(request.params.ticket);
          return noContent(reply);
        });
        app.delete<{ Params: { clusterid: string } }>(
          '/v1/clusters/:clusterid',
          MASTER,
          async (request, reply) => {
            await this.#destroying();
            const clusterid = Number(request.params.clusterid);
            this.masters.delete(clusterid);
            for (const [ticket, owner] of this.sources) if (owner === clusterid) this.sources.delete(ticket);
            for (const [ticket, body] of this.tickets)
              if (body.clusterid === clusterid) this.tickets.delete(ticket);
            return noContent(reply);
          },
        );
      },
    });
    ({ port: this.#port } = await this.#server.listenTls({ address: '127.0.0.1', port: 0, tls: this.#tls }));
  }

  report(as = this.host): Promise<HostReportReply> {
    const body = {
      ...{ address: '127.0.0.1', sfldPort: this.#port, accel: 'tcg', instance: this.#instance },
      ...(this.behaviour.listVms ? { vms: this.vms } : {}),
    };
    return this.sfmd.request({
      method: 'PUT',
      path: `/v1/hosts/${as}`,
      body,
      reply: HostReportReply,
      timeoutMs: 5000,
    });
  }

  get vms(): string[] {
    const clones = [...this.tickets.values()].flatMap((body) =>
      body.clones.map(({ vmid }) => `${body.clusterid}:${vmid}`),
    );
    return [...[...this.masters].map((clusterid) => `${clusterid}:0`), ...clones];
  }

  get empty(): boolean {
    return this.masters.size + this.sources.size + this.tickets.size === 0;
  }

  async #destroying(): Promise<void> {
    await sleep(this.behaviour.destroyDelayMs ?? 0);
    if (this.behaviour.failDestroy) throw new SnowflockError('internal', this.behaviour.failDestroy);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.sfmd.close();
    await this.#server?.close({ deadlineMs: 200 });
  }
}
