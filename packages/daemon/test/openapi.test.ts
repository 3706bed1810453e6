import { Validator } from '@seriousme/openapi-schema-validator';
import Fastify, { type FastifyInstance } from 'fastify';
import { describe, expect, it } from 'vitest';
import { createSystem } from '@snowflock/cluster';
import type { OpenApiDocument, RouteSpec } from '@snowflock/protocol';
import { SFLD_ROUTES, SFMD_ROUTES } from '@snowflock/protocol';
import { sfldDocument, sfmdDocument } from '../src/api-documents.ts';
import type { HostDaemon } from '../src/sfld/host-daemon.ts';
import * as sfld from '../src/sfld/routes.ts';
import type { Certificates } from '../src/sfmd/certificates.ts';
import type { MasterDaemon } from '../src/sfmd/master-daemon.ts';
import { SfmdMetrics } from '../src/sfmd/metrics.ts';
import * as sfmd from '../src/sfmd/routes.ts';

type Operation = { operationId: string; 'x-roles': string[]; responses: Record<string, unknown> };

function described(document: OpenApiDocument): Map<string, Operation> {
  const operations = Object.entries(document['paths'] as Record<string, Record<string, Operation>>).flatMap(
    ([path, methods]) =>
      Object.entries(methods).map(
        ([method, operation]) =>
          [`${method.toUpperCase()} ${path.replaceAll(/\{(\w+)\}/g, ':$1')}`, operation] as const,
      ),
  );
  return new Map(operations);
}

/** What the daemons really register; no handler is called. */
function registered(register: (app: FastifyInstance) => void): Set<string> {
  const found = new Set<string>();
  const app = Fastify();
  app.addHook('onRoute', ({ method, url }) => {
    for (const each of [method].flat()) if (each !== 'HEAD') found.add(`${each} ${url}`);
  });
  register(app);
  return found;
}

describe.each([
  ['sfmd', sfmdDocument(), SFMD_ROUTES],
  ['sfld', sfldDocument(), SFLD_ROUTES],
] as const)('the OpenAPI document of %s', (_name, document, routes: Record<string, RouteSpec>) => {
  it('is valid OpenAPI 3.1, with every reference going somewhere', async () => {
    const validator = new Validator();
    const result = await validator.validate(structuredClone(document));
    expect(result.errors ?? []).toEqual([]);
    expect([result.valid, validator.version]).toEqual([true, '3.1']);
    const schemas = (document['components'] as { schemas: Record<string, unknown> }).schemas;
    const references = [...JSON.stringify(document).matchAll(/"\$ref":"([^"]*)"/g)].map(
      ([, target]) => target ?? '',
    );
    expect(references.length).toBeGreaterThan(5);
    for (const reference of references) {
      const [, name = ''] = /^#\/components\/schemas\/(\w+)$/.exec(reference) ?? [];
      expect(Object.keys(schemas)).toContain(name);
    }
    expect(JSON.stringify(document)).not.toMatch(/\$defs|\$id/);
  });

  it('describes every route of the table with its roles', () => {
    const operations = described(document);
    expect(operations.size).toBe(Object.keys(routes).length);
    for (const [operationId, { method, path, roles }] of Object.entries(routes))
      expect(operations.get(`${method} ${path}`)).toMatchObject({ operationId, 'x-roles': roles });
  });
});

it('sfmd registers what is described, and nothing else', () => {
  const daemon = { system: createSystem({ hosts: [], clusterid: 0 }) } as unknown as MasterDaemon;
  const metrics = new SfmdMetrics(() => daemon.system);
  expect(registered((app) => sfmd.registerRoutes(app, daemon, metrics, {} as Certificates))).toEqual(
    new Set(described(sfmdDocument()).keys()),
  );
});

it('sfld registers what is described, upgrades among it, and besides forwards to sfmd on its unix socket', () => {
  const daemon = {} as unknown as HostDaemon;
  const found = registered((app) => sfld.registerRoutes(app, daemon));
  sfld.registerUpgrades({ onUpgrade: ({ path }) => found.add(`GET ${path}`) }, daemon);
  expect(found).toEqual(new Set(described(sfldDocument()).keys()));
  const local = registered((app) => sfld.registerLocalRoutes(app, daemon));
  expect([...new Set([...local].map((each) => each.split(' ')[1]))]).toEqual(['/v1/master/*']);
});

it('bodies are told as they are on the wire', () => {
  const document = JSON.stringify(sfmdDocument());
  const { components } = sfmdDocument() as {
    components: { schemas: Record<string, { required?: string[] }> };
  };
  expect(components.schemas['TicketRequest']?.required).toEqual(['nclones', 'procs', 'min', 'block']);
  // `failed` has a default: it may be absent.
  expect(components.schemas['RedeemReply']?.required).toEqual(['clones']);
  expect(document).toContain('"name":"force","in":"query","required":false');
  const { paths } = sfldDocument() as {
    paths: Record<string, Record<string, { requestBody?: unknown; responses: object }>>;
  };
  expect(paths['/v1/tickets/{ticket}/launch']?.['post']?.requestBody).toMatchObject({
    content: { 'application/octet-stream': {} },
  });
  expect(Object.keys(paths['/v1/vms/{vm}/exec']?.['get']?.responses ?? {})).toEqual(['101', 'default']);
});
