// OpenAPI 3.1 from the table of routes: what the document says is what the schemas check, because it is made of them.
//
// Bodies are described as they are on the wire, before a schema transforms them or fills in a default.

import { z } from 'zod';
import * as control from './control.ts';
import { ERROR_CODES } from './errors.ts';
import { DescriptorBytes, RESULT_TYPE, ResultStream, type RouteSpec } from './route-spec.ts';

export type OpenApiDocument = Record<string, unknown>;
type Json = Record<string, unknown>;

/** The named schemas; each becomes a component. */
const NAMED = z.registry<{ id: string }>();
for (const [id, schema] of Object.entries(control))
  if (schema instanceof z.ZodType && /^[A-Z]/.test(id) && !NAMED.has(schema)) NAMED.add(schema, { id });

const COMPONENT = '#/components/schemas/';
const ERRORS = {
  description: 'What happened, to what, and what to do',
  content: jsonContent({ $ref: `${COMPONENT}ErrorReply` }),
};

export function openApiDocument(options: {
  readonly title: string;
  readonly description: string;
  readonly version: string;
  readonly routes: Readonly<Record<string, RouteSpec>>;
}): OpenApiDocument {
  const { title, description, version, routes } = options;
  const components = new Components();
  const paths: Record<string, Json> = {};
  for (const [operationId, route] of Object.entries(routes)) {
    const path = route.path.replaceAll(/:(\w+)/g, '{$1}');
    paths[path] ??= {};
    paths[path][route.method.toLowerCase()] = operation(operationId, route, components);
  }
  components.of(control.ErrorReply);
  components.describe('ErrorReply', `Codes of this release: ${ERROR_CODES.join(', ')}.`);
  return {
    openapi: '3.1.1',
    info: { title, version, description, license: { name: 'MIT', identifier: 'MIT' } },
    security: [{ certificate: [] }],
    paths,
    components: {
      schemas: components.schemas,
      securitySchemes: {
        certificate: {
          type: 'mutualTLS',
          description:
            "A certificate of the cluster's authority; its role decides. On the unix socket its file permissions do instead.",
        },
      },
    },
  };
}

function operation(operationId: string, route: RouteSpec, components: Components): Json {
  const { summary, roles, hostScope, params, query, body, reply } = route;
  return {
    operationId,
    summary,
    description: `For ${roles.join(', ')}.${hostScope === undefined ? '' : ` A host: ${hostScope}.`}`,
    'x-roles': roles,
    ...(hostScope === undefined ? {} : { 'x-host-scope': hostScope }),
    parameters: [...parameters('path', params, components), ...parameters('query', query, components)],
    ...(body === undefined
      ? {}
      : { requestBody: { required: true, content: requestContent(body, components) } }),
    responses: { ...success(reply, route, components), default: ERRORS },
  };
}

function requestContent(body: z.ZodType, components: Components): Json {
  if (body === DescriptorBytes) return { 'application/octet-stream': {} };
  if (body === ResultStream) return { [RESULT_TYPE]: {} };
  return jsonContent(components.of(body));
}

function success(reply: RouteSpec['reply'], { contentType }: RouteSpec, components: Components): Json {
  if (reply === null) return { '204': { description: 'Done' } };
  if (typeof reply === 'string')
    return { '101': { description: `The connection is upgraded: the request has \`Upgrade: ${reply}\`` } };
  const schema = components.of(reply);
  return {
    '200': {
      description: 'Done',
      content: contentType ? { [contentType]: { schema } } : jsonContent(schema),
    },
  };
}

function jsonContent(schema: Json): Json {
  return { 'application/json': { schema } };
}

function parameters(place: 'path' | 'query', schema: z.ZodType | undefined, components: Components): Json[] {
  if (schema === undefined) return [];
  const { properties = {}, required = [] } = components.of(schema) as {
    properties?: Record<string, Json>;
    required?: string[];
  };
  return Object.entries(properties).map(([name, each]) => ({
    name,
    in: place,
    required: place === 'path' || required.includes(name),
    schema: each,
  }));
}

class Components {
  readonly schemas: Record<string, Json> = {};

  /** A reference if the schema has a name, or else the schema itself; named ones become components. */
  of(schema: z.ZodType): Json {
    const made = z.toJSONSchema(schema, { io: 'input', unrepresentable: 'any', metadata: NAMED });
    const {
      $defs = {},
      $schema: _schema,
      id: _id,
      ...json
    } = JSON.parse(JSON.stringify(made).replaceAll('#/$defs/', COMPONENT)) as Json;
    for (const [name, { id: _name, ...definition }] of Object.entries($defs as Record<string, Json>))
      this.schemas[name] = definition;
    return json;
  }

  describe(name: string, description: string): void {
    this.schemas[name] = { ...this.schemas[name], description };
  }
}
