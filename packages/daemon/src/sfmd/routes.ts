// The HTTP surface of sfmd (packages/protocol/src/control.ts): parsing and nothing else.

import type { FastifyInstance } from 'fastify';
import { z } from 'zod';
import {
  HostReport,
  LaunchReport,
  SnowflockError,
  ticketId,
  TicketRequest,
  VmEnded,
  VmShape,
} from '@snowflock/protocol';
import { systemState, ticketInfo, ticketList, type TicketRef } from '@snowflock/cluster';
import { assertPeerIsHost, callerSignal, noContent, parseInput } from '../http-routes.ts';
import type { MasterDaemon } from './master-daemon.ts';

const number = z
  .string()
  .regex(/^\d{1,8}$/, 'must be a number')
  .transform(Number);
const ClusterPath = z.object({ clusterid: number });
const VmPath = z.object({ clusterid: number, vmid: number });
const HostPath = z.object({ host: z.string() });
const flag = z.enum(['0', '1', 'true', 'false']).transform((value) => value === '1' || value === 'true');
const ShutdownQuery = z.object({
  force: flag.default(false),
  by: z.enum(['guest', 'operator']).default('operator'),
});

const clusterOf = (params: unknown): number => parseInput(ClusterPath, params, 'path').clusterid;

function ticketOf(params: unknown): TicketRef {
  const { ticket } = params as { ticket: string };
  const clusterid = clusterOf(params);
  if (!ticketId.safeParse(ticket).success)
    throw new SnowflockError(
      'no-such-ticket',
      `'${ticket.slice(0, 64)}' is not a ticket; a ticket is a UUID`,
    );
  return { clusterid, ticket };
}

export function registerRoutes(app: FastifyInstance, daemon: MasterDaemon): void {
  app.get('/v1/state', () => systemState(daemon.system));

  app.put('/v1/hosts/:host', (request) => {
    const { host } = parseInput(HostPath, request.params, 'path');
    assertPeerIsHost(request, host);
    return daemon.reportHost(host, parseInput(HostReport, request.body));
  });

  app.post('/v1/clusters', (request, reply) =>
    daemon.seed(parseInput(VmShape, request.body), callerSignal(reply)),
  );
  app.delete('/v1/clusters/:clusterid', async (request, reply) => {
    const { force, by } = parseInput(ShutdownQuery, request.query, 'query');
    await daemon.shutdown({ clusterid: clusterOf(request.params), force, byGuest: by === 'guest' });
    return noContent(reply);
  });
  app.post('/v1/clusters/:clusterid/merge', async (request, reply) => {
    await daemon.mergeAll(clusterOf(request.params));
    return noContent(reply);
  });
  app.post('/v1/clusters/:clusterid/vms/:vmid/ended', (request, reply) => {
    daemon.vmEnded(parseInput(VmPath, request.params, 'path'), parseInput(VmEnded, request.body));
    return noContent(reply);
  });

  app.get('/v1/clusters/:clusterid/tickets', (request) =>
    ticketList(daemon.system, clusterOf(request.params)),
  );
  app.post('/v1/clusters/:clusterid/tickets', (request, reply) =>
    daemon.requestTicket(
      clusterOf(request.params),
      parseInput(TicketRequest, request.body),
      callerSignal(reply),
    ),
  );
  app.get('/v1/clusters/:clusterid/tickets/:ticket', (request) =>
    ticketInfo(daemon.system, ticketOf(request.params)),
  );
  app.delete('/v1/clusters/:clusterid/tickets/:ticket', async (request, reply) => {
    await daemon.dispose(ticketOf(request.params));
    return noContent(reply);
  });
  app.post('/v1/clusters/:clusterid/tickets/:ticket/redeem', (request, reply) =>
    daemon.redeem(ticketOf(request.params), callerSignal(reply)),
  );
  app.post('/v1/clusters/:clusterid/tickets/:ticket/launched', (request, reply) => {
    daemon.launched(ticketOf(request.params), parseInput(LaunchReport, request.body));
    return noContent(reply);
  });
  app.post('/v1/clusters/:clusterid/tickets/:ticket/merge', async (request, reply) => {
    await daemon.merge(ticketOf(request.params));
    return noContent(reply);
  });
  app.post('/v1/clusters/:clusterid/tickets/:ticket/join', async (request, reply) => {
    await daemon.join(ticketOf(request.params), callerSignal(reply));
    return noContent(reply);
  });
}
