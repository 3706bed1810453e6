// The HTTP surface of sfmd (packages/protocol/src/routes.ts): which part of the daemon answers what.

import type { FastifyInstance } from 'fastify';
import { SFMD_ROUTES as ROUTES, type RouteSpec } from '@snowflock/protocol';
import { ticketInfo, ticketList } from '@snowflock/cluster';
import { sfmdDocument } from '../api-documents.ts';
import type { DaemonMetrics } from '../metrics.ts';
import { serve as serveAny, type RouteHandler } from '../serve.ts';
import type { Certificates } from './certificates.ts';
import { assertHostScope } from './host-scope.ts';
import type { MasterDaemon } from './master-daemon.ts';

export function registerRoutes(
  app: FastifyInstance,
  daemon: MasterDaemon,
  metrics: DaemonMetrics,
  certificates: Certificates,
): void {
  const serve = <const R extends RouteSpec>(route: R, handler: RouteHandler<R>): void =>
    serveAny(app, route, (input) => {
      assertHostScope(daemon.system, route, input);
      return handler(input);
    });

  serve(ROUTES.metrics, () => metrics.text());
  serve(ROUTES.openapi, () => sfmdDocument());

  serve(ROUTES.state, ({ query }) => daemon.state(query));
  serve(ROUTES.events, ({ query, request, reply }) => {
    const after = request.headers['last-event-id'];
    const options = { clusterid: query.cluster ?? null, after: typeof after === 'string' ? after : null };
    daemon.events.serve(reply.raw, options);
    reply.hijack();
  });
  serve(ROUTES.reportHost, ({ params, body }) => ({
    ...daemon.reportHost(params.host, body),
    network: daemon.routers.policy,
    ...(body.routers ? { gone: daemon.routers.take(params.host, body.routers) } : {}),
    ...(certificates.canRevoke ? { revoked: certificates.revoked.serials() } : {}),
  }));

  serve(ROUTES.seed, ({ body, signal }) => daemon.seed(body, signal));
  serve(ROUTES.shutdown, ({ params, query }) =>
    daemon.shutdown({ ...params, force: query.force, byGuest: query.by === 'guest' }),
  );
  serve(ROUTES.mergeAll, ({ params, query }) => daemon.mergeAll({ ...params, by: query.vm }));
  serve(ROUTES.resetVm, ({ params, query }) => daemon.resetVm(params, query.vm));
  serve(ROUTES.migrateVm, ({ params, body }) => daemon.migrations.migrate(params, body.host));
  serve(ROUTES.migrationTold, ({ params, body }) => daemon.migrations.told(params.ticket, body));
  serve(ROUTES.vmEnded, ({ params, body }) => daemon.vmEnded(params, body));

  serve(ROUTES.listTickets, ({ params, query }) => ticketList(daemon.system, { ...params, by: query.vm }));
  serve(ROUTES.requestTicket, ({ params, query, body, caller }) =>
    daemon.requestTicket({ ...params, by: query.vm }, body, caller),
  );
  serve(ROUTES.ticketInfo, ({ params, query }) => ticketInfo(daemon.system, { ...params, by: query.vm }));
  serve(ROUTES.dispose, ({ params, query }) => daemon.dispose({ ...params, by: query.vm }));
  serve(ROUTES.redeem, ({ params, query, body, caller }) =>
    daemon.redeem({ ...params, by: query.vm }, body, caller),
  );
  serve(ROUTES.launched, ({ params, body }) => daemon.launched(params, body));
  serve(ROUTES.merge, ({ params, query }) => daemon.merge({ ...params, by: query.vm }));
  serve(ROUTES.join, ({ params, query, signal }) => daemon.join({ ...params, by: query.vm }, signal));
  serve(ROUTES.wait, ({ params, query, body, signal }) =>
    daemon.wait({ ...params, by: query.vm }, body, signal),
  );

  serve(ROUTES.createCheckpoint, ({ body, signal }) => daemon.checkpoints.create(body, signal));
  serve(ROUTES.listCheckpoints, () => daemon.checkpoints.list());
  serve(ROUTES.checkpoint, ({ params }) => daemon.checkpoints.info(params.name));
  serve(ROUTES.deleteCheckpoint, ({ params, query }) => daemon.checkpoints.delete(params.name, query));
  serve(ROUTES.checkpointWritten, ({ params, body }) =>
    daemon.checkpoints.written(params.name, params.host, body),
  );

  serve(ROUTES.routers, () => daemon.routers.list());

  serve(ROUTES.issueToken, ({ body, peer }) => certificates.issueToken(body, peer.name));
  serve(ROUTES.listCertificates, () => certificates.list());
  serve(ROUTES.issueCertificate, ({ body, peer }) => certificates.issue(body, peer.name));
  serve(ROUTES.renewCertificate, ({ body, peer }) => certificates.renew(peer, body.csr));
  serve(ROUTES.revokeCertificates, ({ body, peer }) => certificates.revoke(body, peer.name));
}
