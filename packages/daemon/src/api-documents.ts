// The OpenAPI documents of both daemons, made when somebody first asks.

import { openApiDocument, SFLD_ROUTES, SFMD_ROUTES, type OpenApiDocument } from '@snowflock/protocol';

/** Of the API: it changes when a path or a schema does. */
const API_VERSION = '1.0.0';

function once(make: () => OpenApiDocument): () => OpenApiDocument {
  let made: OpenApiDocument | undefined;
  return () => (made ??= make());
}

export const sfmdDocument = once(() =>
  openApiDocument({
    title: 'SnowFlock master daemon (sfmd)',
    description:
      'Clusters, tickets and placement: one per system. An sfld forwards /v1/master/... on its unix socket to it.',
    version: API_VERSION,
    routes: SFMD_ROUTES,
  }),
);

export const sfldDocument = once(() =>
  openApiDocument({
    title: 'SnowFlock local daemon (sfld)',
    description:
      'The VMs, networks and forks of one host. On its unix socket only, /v1/master/... is forwarded to /v1/... of sfmd.',
    version: API_VERSION,
    routes: SFLD_ROUTES,
  }),
);
