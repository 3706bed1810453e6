// Helpers for route handlers: parsing, empty replies, and when the caller has gone.

import type { FastifyReply } from 'fastify';
import type { z } from 'zod';
import { SnowflockError } from '@snowflock/protocol';

/** Parses what a request carries; a failure names the field and answers bad-request. */
export function parseInput<T>(schema: z.ZodType<T>, value: unknown, what = 'body'): T {
  const parsed = schema.safeParse(value);
  if (parsed.success) return parsed.data;
  throw badInput(parsed.error, what);
}

export function badInput(error: z.ZodError, what: string): SnowflockError {
  const issues = error.issues
    .slice(0, 5)
    .map((issue) => `${[what, ...issue.path.map(String)].join('.')}: ${issue.message}`);
  return new SnowflockError('bad-request', issues.join('; '), { cause: error });
}

/** Whoever waits for an answer. */
export interface Caller {
  /** Aborts when it closes its connection before it got its answer. */
  readonly signal: AbortSignal;
  /** Called once the whole answer has been handed to the connection. */
  readonly onAnswered: (listener: () => void) => void;
}

export function callerOf(reply: FastifyReply): Caller {
  return {
    signal: callerSignal(reply),
    onAnswered: (listener) => void reply.raw.once('finish', listener),
  };
}

/** Aborts when the caller closes its connection before it got its answer. */
export function callerSignal(reply: FastifyReply): AbortSignal {
  const gone = new AbortController();
  const response = reply.raw;
  if (response.destroyed) gone.abort();
  response.once('close', () => {
    if (!response.writableFinished) gone.abort(new SnowflockError('interrupted', 'the caller is gone'));
  });
  return gone.signal;
}

/** Answer without a body. */
export function noContent(reply: FastifyReply): FastifyReply {
  return reply.code(204).send();
}
