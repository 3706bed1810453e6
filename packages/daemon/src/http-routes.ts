// Helpers for route handlers: parsing, empty replies, who is calling, and when the caller has gone.

import type { FastifyReply, FastifyRequest } from 'fastify';
import * as tls from 'node:tls';
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

/** The TLS peer's certificate, or null on the unix socket, whose file permissions have let only root in. */
function peerCertificate(request: FastifyRequest): tls.PeerCertificate | null {
  const { socket } = request.raw;
  return socket instanceof tls.TLSSocket ? socket.getPeerCertificate() : null;
}

/** Throws 'unauthorized' unless the caller is local or its certificate is for `host`. */
export function assertPeerIsHost(request: FastifyRequest, host: string): void {
  const certificate = peerCertificate(request);
  if (certificate === null) return;
  const problem = tls.checkServerIdentity(host, certificate);
  if (problem === undefined) return;
  throw new SnowflockError(
    'unauthorized',
    `the caller's certificate is not for host '${host}': ${problem.message}`,
  );
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
