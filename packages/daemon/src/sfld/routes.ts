// The HTTP surface of sfld (packages/protocol/src/control.ts): parsing and nothing else.

import type { FastifyInstance } from 'fastify';
import { connect } from 'node:net';
import type { Duplex } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import {
  decodeDescriptor,
  formatVmRef,
  parseVmRef,
  PrepareClones,
  PrepareSource,
  SnowflockError,
  StartMaster,
  SystemState,
  ticketId,
  type VmRef,
} from '@snowflock/protocol';
import { within } from '@snowflock/vm';
import { z } from 'zod';
import type { ControlServer } from '../http.ts';
import { callerSignal, noContent, parseInput } from '../http-routes.ts';
import type { UpgradeRequest } from '../http-upgrade.ts';
import type { HostDaemon, ReachableVm, VmLocation } from './host-daemon.ts';

const FORWARD_TIMEOUT_MS = 7 * 24 * 3600 * 1000;
const STATE_TIMEOUT_MS = 10_000;
/** VMs elsewhere whose place is remembered; forgetting costs one question to sfmd. */
const LOCATIONS_MAX = 4096;
const UPGRADE_TIMEOUT_MS = 30_000;
/** Below what an upgrade may take in all; a caller whose guest still boots then tries again. */
const AGENT_READY_TIMEOUT_MS = 25_000;

export function registerRoutes(app: FastifyInstance, daemon: HostDaemon): void {
  const ticketOf = (params: unknown): string =>
    parseInput(z.object({ ticket: ticketId }), params, 'path').ticket;
  app.post('/v1/vms', async (request) => daemon.startMaster(parseInput(StartMaster, request.body)));
  app.post('/v1/sources', async (request, reply) => {
    await daemon.prepareSource(parseInput(PrepareSource, request.body));
    return noContent(reply);
  });
  app.post('/v1/tickets', async (request, reply) => {
    await daemon.prepareClones(parseInput(PrepareClones, request.body));
    return noContent(reply);
  });
  app.post('/v1/tickets/:ticket/launch', async (request) => {
    if (!Buffer.isBuffer(request.body))
      throw new SnowflockError('bad-request', 'the body must be a descriptor');
    return daemon.launch(ticketOf(request.params), decodeDescriptor(request.body));
  });
  app.delete('/v1/tickets/:ticket', async (request, reply) => {
    await daemon.destroyTicket(ticketOf(request.params));
    return noContent(reply);
  });
  app.delete('/v1/clusters/:clusterid', async (request, reply) => {
    const schema = z.object({ clusterid: z.coerce.number().int().min(0) });
    await daemon.destroyCluster(parseInput(schema, request.params, 'path').clusterid);
    return noContent(reply);
  });
  app.get('/v1/state', async () => daemon.state());
  app.get('/v1/forks', async () => daemon.forks());
  app.get('/v1/clones', async () => daemon.clones());
  app.get(
    '/v1/sources/:ticket',
    async (request) => (await daemon.sourceStats(ticketOf(request.params))) ?? {},
  );
}

/** Only on the unix socket: what local commands ask of sfmd goes through this host's certificate. */
export function registerLocalRoutes(app: FastifyInstance, daemon: HostDaemon): void {
  app.all('/v1/master/*', async (request, reply) => {
    const path = `/v1/${request.url.slice('/v1/master/'.length)}`;
    const method = z.enum(['GET', 'PUT', 'POST', 'DELETE']).parse(request.method);
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

export function registerUpgrades(server: ControlServer, daemon: HostDaemon): void {
  server.onUpgrade({ protocol: 'snowflock-exec', path: '/v1/vms/:vm/exec' }, (request) =>
    relay(daemon, request, 'snowflock-exec', async (vm) => {
      await within(vm.port.ready, AGENT_READY_TIMEOUT_MS, 'the start of the guest agent');
      vm.port.exec.serve(request.accept());
    }),
  );
  server.onUpgrade({ protocol: 'snowflock-console', path: '/v1/vms/:vm/console' }, (request) =>
    relay(daemon, request, 'snowflock-console', async (vm) => {
      const client = request.accept();
      const console = connect(vm.consolePath);
      console.on('error', () => client.destroy());
      client.on('close', () => console.destroy());
      console.on('close', () => client.end());
      client.pipe(console);
      console.pipe(client);
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
  const client = request.accept();
  const both = [pipeline(client, remote), pipeline(remote, client)];
  await Promise.allSettled(both);
}

/** A VM stays where it is, so where it was found once is asked first: it can be reached while sfmd cannot. */
async function connectRemote(
  daemon: HostDaemon,
  ref: VmRef,
  options: { protocol: string; signal: AbortSignal },
): Promise<Duplex> {
  const { protocol, signal } = options;
  const name = formatVmRef(ref);
  const path = `/v1/vms/${name}/${protocol.slice('snowflock-'.length)}?relayed=1`;
  const connect = ({ host, address, sfldPort }: VmLocation): Promise<Duplex> =>
    daemon.context.peers
      .client({ host, address, port: sfldPort })
      .upgrade({ path, protocol, timeoutMs: UPGRADE_TIMEOUT_MS, signal });
  const known = daemon.locations.get(name);
  if (known) {
    try {
      return await connect(known);
    } catch (error) {
      if (!(error instanceof SnowflockError) || !['no-such-vm', 'host-down'].includes(error.code))
        throw error;
      daemon.locations.delete(name);
    }
  }
  const found = await locate(daemon, ref);
  if (daemon.locations.size >= LOCATIONS_MAX) daemon.locations.clear();
  daemon.locations.set(name, found);
  return connect(found);
}

async function locate(daemon: HostDaemon, ref: VmRef): Promise<VmLocation> {
  const state = await daemon.context.masterDaemon.request({
    method: 'GET',
    path: '/v1/state',
    reply: SystemState,
    timeoutMs: STATE_TIMEOUT_MS,
  });
  const name = `${ref.clusterid}:${ref.vmid}`;
  const vm = state.clusters
    .find((one) => one.clusterid === ref.clusterid)
    ?.vms.find((one) => one.vmid === ref.vmid);
  if (!vm) throw new SnowflockError('no-such-vm', `there is no VM ${name}; sfstate lists them`);
  if (vm.status !== 'running' && vm.status !== 'booting')
    throw new SnowflockError('no-such-vm', `VM ${name} is ${vm.status}${vm.reason ? `: ${vm.reason}` : ''}`);
  const host = state.hosts.find((one) => one.host === vm.host);
  if (!host?.address || !host.sfldPort || host.host === daemon.context.host)
    throw new SnowflockError(
      'host-down',
      `VM ${name} should run on host ${vm.host}, which cannot be reached`,
    );
  return { host: host.host, address: host.address, sfldPort: host.sfldPort };
}
