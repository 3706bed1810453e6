// The HTTP surface of sfld (packages/protocol/src/routes.ts): which part of the daemon answers what.

import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify';
import type { Duplex } from 'node:stream';
import {
  decodeDescriptor,
  formatVmRef,
  parseVmRef,
  SFLD_ROUTES as ROUTES,
  SFMD_ROUTES as MASTER_ROUTES,
  type RouteSpec,
  SnowflockError,
  toSnowflockError,
  type VmRef,
} from '@snowflock/protocol';
import { within } from '@snowflock/vm';
import { z } from 'zod';
import { sfldDocument } from '../api-documents.ts';
import type { ControlServer } from '../http.ts';
import { callerSignal, noContent } from '../http-routes.ts';
import type { UpgradeRequest } from '../http-upgrade.ts';
import { joinConnections } from '../join-connections.ts';
import { serve } from '../serve.ts';
import { checkReach, listenForReach } from './reach.ts';
import { exposePort, hidePort } from './expose.ts';
import { forkFromHost, mergeFromHost } from './fork-from-host.ts';
import type { HostDaemon, ReachableVm } from './host-daemon.ts';
import { hearMulticast } from './multicast-address.ts';
import type { Peer } from '../peer.ts';
import { clonesHost } from './ticket-places.ts';
import { atVmsHost } from './vm-locations.ts';

const FORWARD_TIMEOUT_MS = 7 * 24 * 3600 * 1000;
const STATE_TIMEOUT_MS = 10_000;
const UPGRADE_TIMEOUT_MS = 30_000;
/** Below what an upgrade may take in all; a caller whose guest still boots then tries again. */
const AGENT_READY_TIMEOUT_MS = 25_000;

export function registerRoutes(app: FastifyInstance, daemon: HostDaemon): void {
  serve(app, ROUTES.metrics, () => daemon.context.metrics.text());
  serve(app, ROUTES.openapi, () => sfldDocument());
  serve(app, ROUTES.state, () => daemon.state());
  serve(app, ROUTES.forks, ({ query }) => daemon.forks(query.ticket));
  serve(app, ROUTES.clones, ({ query }) => daemon.clones(query.ticket));
  serve(app, ROUTES.sourceStats, async ({ params }) => ({ ...(await daemon.sourceStats(params.ticket)) }));
  serve(app, ROUTES.pageSource, ({ params, peer }) => {
    daemon.assertMayFetch(params.ticket, peer);
    return daemon.pageSource(params.ticket);
  });
  serve(app, ROUTES.relay, ({ params, peer }) => daemon.relaySource(params.ticket, peer));
  serve(app, ROUTES.tryMulticast, ({ body }) => hearMulticast(daemon.context, body));
  serve(app, ROUTES.startMaster, ({ body }) => daemon.startMaster(body));
  serve(app, ROUTES.destroyVm, ({ params }) => daemon.destroyVm(parseVmRef(params.vm)));
  serve(app, ROUTES.forkVm, ({ params, query, body, signal }) =>
    forkFromHost(daemon, parseVmRef(params.vm), { ask: body, relayed: query.relayed, signal }),
  );
  serve(app, ROUTES.mergeVm, ({ params, query, body, signal }) =>
    mergeFromHost(daemon, parseVmRef(params.vm), { ask: body, relayed: query.relayed, signal }),
  );
  serve(app, ROUTES.exposePort, ({ params, query, body, signal }) =>
    exposePort(daemon, {
      ...{ ref: parseVmRef(params.vm), port: params.port, hostPort: body.hostPort },
      ...{ relayed: query.relayed, signal },
    }),
  );
  serve(app, ROUTES.hidePort, ({ params, query, signal }) =>
    hidePort(daemon, { ref: parseVmRef(params.vm), port: params.port, relayed: query.relayed, signal }),
  );
  serve(app, ROUTES.resetVm, ({ params }) => daemon.resetVm(parseVmRef(params.vm)));
  serve(app, ROUTES.endVms, () => daemon.endAll());
  serve(app, ROUTES.writeCheckpoint, ({ body }) => daemon.writeCheckpoint(body));
  serve(app, ROUTES.serveCheckpoint, ({ params, body }) => daemon.serveCheckpoint(params.name, body));
  serve(app, ROUTES.deleteHeldCheckpoint, ({ params, query }) =>
    daemon.context.checkpoints.remove(params.name, query.id),
  );
  serve(app, ROUTES.sourceDescriptor, async ({ params, peer }) => {
    daemon.assertMayFetch(params.ticket, peer);
    return { descriptor: (await daemon.sourceDescriptor(params.ticket)).toString('base64') };
  });
  serve(app, ROUTES.prepareSource, ({ body }) => daemon.prepareSource(body));
  serve(app, ROUTES.prepareClones, ({ body }) => daemon.prepareClones(body));
  serve(app, ROUTES.launch, async ({ params, body, peer }) => {
    await daemon.assertMayLaunch(params.ticket, peer);
    return daemon.launch(params.ticket, decodeDescriptor(body));
  });
  serve(app, ROUTES.sendVm, ({ params, body }) => daemon.sendVm(parseVmRef(params.vm), body));
  serve(app, ROUTES.settleMigration, async ({ params, peer }) => {
    await daemon.assertMayLaunch(params.ticket, peer);
    return daemon.settleMigration(params.ticket);
  });
  serve(app, ROUTES.putBox, ({ params, query, body, peer }) => {
    daemon.assertComesFrom(query.move, peer, body);
    if (body.ticket !== params.ticket) throw new SnowflockError('bad-request', 'it is of another ticket');
    return daemon.context.results.open(body);
  });
  serve(app, ROUTES.putResult, async ({ params, query, body, peer }) => {
    const { results } = daemon.context;
    await assertMayPut(daemon, { ...params, move: query.move }, peer);
    return results.put(params, { status: query.status, sizeBytes: query.bytes, source: body });
  });
  serve(app, ROUTES.dropResult, async ({ params, peer }) => {
    const { results } = daemon.context;
    await assertMayPut(daemon, params, peer);
    return results.drop(params);
  });
  serve(app, ROUTES.reach, ({ query }) => checkReach(daemon.context, query));
  serve(app, ROUTES.reachListen, () => listenForReach(daemon.context.address));
  serve(app, ROUTES.destroyTicket, ({ params }) => daemon.destroyTicket(params.ticket));
  serve(app, ROUTES.destroyCluster, ({ params }) => daemon.destroyCluster(params.clusterid));
}

/** Throws 'unauthorized' unless the clone that the result is of runs on the caller's host, or has gone there meanwhile. */
async function assertMayPut(
  daemon: HostDaemon,
  { ticket, vmid, move }: { ticket: string; vmid: number; move?: string | undefined },
  peer: Peer,
): Promise<void> {
  const { context } = daemon;
  if (move !== undefined) return daemon.assertComesFrom(move, peer, context.results.boxOf(ticket));
  try {
    context.results.assertMayPut(ticket, vmid, peer.isHost);
  } catch (error) {
    const host =
      toSnowflockError(error).code === 'unauthorized' ? await clonesHost(context, ticket, vmid) : null;
    if (host === null || !peer.isHost(host)) throw error;
    await context.results.cloneMoved({ ticket, vmid, host });
  }
}

const OPERATOR = { config: { roles: ['operator'] } } as const;

/** What an operator may ask of sfmd, as patterns of `METHOD /path`. */
const OPERATOR_ROUTES = Object.values(MASTER_ROUTES)
  .filter((route: RouteSpec) => route.roles.includes('operator'))
  .map(({ method, path }) => new RegExp(`^${method} ${path.replaceAll(/:\w+/g, '[^/]+')}$`));

/** Only on the unix socket: what local commands ask of sfmd goes through this host's certificate. */
export function registerLocalRoutes(app: FastifyInstance, daemon: HostDaemon): void {
  app.all('/v1/master/*', OPERATOR, async (request, reply) => {
    const path = `/v1/${request.url.slice('/v1/master/'.length)}`;
    if (isEvents(path)) return forwardEvents(daemon, path, { request, reply });
    const method = z.enum(['GET', 'PUT', 'POST', 'DELETE']).parse(request.method);
    const asked = `${method} ${path.split('?')[0] ?? ''}`;
    if (!OPERATOR_ROUTES.some((pattern) => pattern.test(asked)))
      throw new SnowflockError('unauthorized', `${asked} of sfmd is not for operators`);
    const answer = await daemon.context.masterDaemon.request({
      method,
      path,
      ...(request.body === undefined || request.body === null ? {} : { body: request.body }),
      reply: z.unknown(),
      timeoutMs: FORWARD_TIMEOUT_MS,
      signal: callerSignal(reply),
    });
    return answer === undefined ? noContent(reply) : answer;
  });
}

const isEvents = (path: string): boolean => /^\/v1\/events(\?|$)/.test(path);

/** As they come; who does not read them is cut off by sfmd. */
async function forwardEvents(
  daemon: HostDaemon,
  path: string,
  { request, reply }: { request: FastifyRequest; reply: FastifyReply },
): Promise<FastifyReply> {
  const after = request.headers['last-event-id'];
  const events = await daemon.context.masterDaemon.stream({
    path,
    headers: typeof after === 'string' ? { 'last-event-id': after } : {},
    timeoutMs: STATE_TIMEOUT_MS,
    signal: callerSignal(reply),
  });
  reply.raw.once('close', () => events.destroy());
  return reply.type('text/event-stream').send(events);
}

export function registerUpgrades(server: Pick<ControlServer, 'onUpgrade'>, daemon: HostDaemon): void {
  server.onUpgrade(ROUTES.exec, (request) =>
    relay(daemon, request, ROUTES.exec.reply, async (vm) => {
      await within(vm.port.ready, AGENT_READY_TIMEOUT_MS, 'the start of the guest agent');
      const token = request.query.get('expected');
      if (token !== null) vm.port.exec.assertExpected(token);
      vm.port.exec.serve(request.accept(), token);
    }),
  );
  server.onUpgrade(ROUTES.console, (request) =>
    relay(daemon, request, ROUTES.console.reply, async (vm) => {
      const token = request.query.get('expected');
      if (token !== null) vm.console.assertExpected(token);
      vm.console.serve(request.accept(), token);
    }),
  );
}

/** Serves a VM of this host itself; for one elsewhere joins the caller to that host's sfld. */
async function relay(
  daemon: HostDaemon,
  request: UpgradeRequest,
  protocol: string,
  serve: (vm: ReachableVm) => Promise<void>,
): Promise<void> {
  const ref = parseVmRef(request.params['vm'] ?? '');
  const vm = daemon.vm(ref);
  if (vm) return serve(vm);
  if (request.query.get('relayed') === '1')
    throw new SnowflockError(
      'no-such-vm',
      `VM ${ref.clusterid}:${ref.vmid} is not on host ${daemon.context.host}`,
    );
  const remote = await connectRemote(daemon, ref, { protocol, signal: request.signal });
  await joinConnections(request.accept(), remote);
}

async function connectRemote(
  daemon: HostDaemon,
  ref: VmRef,
  options: { protocol: string; signal: AbortSignal },
): Promise<Duplex> {
  const { protocol, signal } = options;
  const path = `/v1/vms/${formatVmRef(ref)}/${protocol.slice('snowflock-'.length)}?relayed=1`;
  return atVmsHost(daemon, ref, (client) =>
    client.upgrade({ path, protocol, timeoutMs: UPGRADE_TIMEOUT_MS, signal }),
  );
}
