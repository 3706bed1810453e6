// From the table of routes (packages/protocol/src/routes.ts) to handlers: what a request carries is parsed by the route's
// own schemas before the handler sees it.

import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify';
import type { z } from 'zod';
import {
  DescriptorBytes,
  RESULT_BYTES_MAX,
  ResultStream,
  SnowflockError,
  type RouteSpec,
} from '@snowflock/protocol';
import { peerOf, type Peer } from './peer.ts';
import { BINARY_BODY_MAX_BYTES } from './http-limits.ts';
import { callerOf, callerSignal, noContent, parseInput, type Caller } from './http-routes.ts';

type Parsed<T> = T extends z.ZodType ? z.infer<T> : undefined;
type Reply<R extends RouteSpec> = R['reply'] extends z.ZodType ? z.input<R['reply']> : void;

/** A stream is sent as it is. */
type Answer<R extends RouteSpec> = R['contentType'] extends 'text/event-stream' ? void : Reply<R>;

export interface RouteInput<R extends RouteSpec> {
  readonly params: Parsed<R['params']>;
  readonly query: Parsed<R['query']>;
  readonly body: Parsed<R['body']>;
  /** Aborts when the caller closes its connection before it got its answer. */
  readonly signal: AbortSignal;
  /** For what has to be undone when its answer does not get through. */
  readonly caller: Caller;
  /** Who asks. */
  readonly peer: Peer;
  readonly request: FastifyRequest;
  /** For a handler that answers by itself: it hijacks it. */
  readonly reply: FastifyReply;
}

export type RouteHandler<R extends RouteSpec> = (input: RouteInput<R>) => Answer<R> | Promise<Answer<R>>;

/** Adds a route of the table. The handler answers with what the table says, or nothing. */
export function serve<const R extends RouteSpec>(
  app: FastifyInstance,
  route: R,
  handler: RouteHandler<R>,
): void {
  const body: z.ZodType | undefined = route.body;
  app.route({
    method: route.method,
    url: route.path,
    config: { roles: route.roles },
    ...(body === DescriptorBytes ? { bodyLimit: BINARY_BODY_MAX_BYTES } : {}),
    // Never held as a whole; what is stored of it has limits of its own.
    ...(body === ResultStream ? { bodyLimit: RESULT_BYTES_MAX } : {}),
    async handler(request, reply) {
      const input = {
        params: route.params && parseParams(route.params, request.params),
        query: route.query && parseInput(route.query, request.query, 'query'),
        body: body && parseInput(body, request.body),
        peer: peerOf(request.raw.socket),
        request,
        reply,
        get signal() {
          return callerSignal(reply);
        },
        get caller() {
          return callerOf(reply);
        },
      } as RouteInput<R>;
      const answer = await handler(input);
      if (reply.sent) return reply;
      if (route.contentType !== undefined) reply.type(route.contentType);
      return route.reply === null ? noContent(reply) : answer;
    },
  });
}

function parseParams(schema: z.ZodType, params: unknown): unknown {
  const parsed = schema.safeParse(params);
  if (parsed.success) return parsed.data;
  const { ticket } = params as { ticket?: string };
  if (parsed.error.issues.some(({ path }) => path[0] === 'ticket'))
    throw new SnowflockError(
      'no-such-ticket',
      `'${String(ticket).slice(0, 64)}' is not a ticket; a ticket is a UUID`,
    );
  return parseInput(schema, params, 'path');
}
