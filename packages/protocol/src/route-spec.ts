// What a route of the control API is, and what those of both daemons have in common.

import { Readable } from 'node:stream';
import { z } from 'zod';
import { checkpointName } from './checkpoint.ts';
import { ticketId, vmName } from './control.ts';
import type { Role } from './roles.ts';

/** Body schema of the one request whose body is binary (descriptor.ts). */
export const DescriptorBytes = z.instanceof(Buffer, {
  error: 'must be a descriptor, as application/octet-stream',
});

/** Content type of a result; read as it comes, never as a whole. */
export const RESULT_TYPE = 'application/x-snowflock-result';
export const ResultStream = z.instanceof(Readable, { error: `must be a result, as ${RESULT_TYPE}` });

export interface RouteSpec {
  readonly method: 'GET' | 'PUT' | 'POST' | 'DELETE';
  /** With parameters as `:name`. */
  readonly path: string;
  /** One line, for people. */
  readonly summary: string;
  /** Who may ask. */
  readonly roles: readonly Role[];
  /**
   * What a caller with the role `host` may ask it for: its own name (`:host`), clusters that it runs a VM of (`:clusterid`),
   * or anything; for a VM that asks (`vm` of the query) only the host that runs it. Absent: anything.
   */
  readonly hostScope?: 'own-name' | 'own-clusters';
  readonly params?: z.ZodType;
  readonly query?: z.ZodType;
  readonly body?: z.ZodType;
  /** Null: 204 without a body. A string: the protocol that the connection is upgraded to. */
  readonly reply: z.ZodType | string | null;
  /** Of the reply; absent: JSON. */
  readonly contentType?: string;
}

export const number = z
  .string()
  .regex(/^\d{1,8}$/, 'must be a number')
  .transform(Number);
export const flag = z
  .enum(['0', '1', 'true', 'false'])
  .transform((value) => value === '1' || value === 'true');
export const OfHost = z.object({ host: z.string() });
export const OfCluster = z.object({ clusterid: number });
export const OfVm = z.object({ clusterid: number, vmid: number });
export const OfClusterTicket = z.object({ clusterid: number, ticket: ticketId });
export const OfPort = z.object({ vm: vmName, port: number.pipe(z.int().min(1).max(65535)) });
export const OfTicket = z.object({ ticket: ticketId });
export const OfCheckpoint = z.object({ name: checkpointName });
export const OfResult = z.object({ ticket: ticketId, vmid: number });
export const OfVmName = z.object({ vm: vmName });
export const ShutdownQuery = z.object({
  force: flag.default(false),
  by: z.enum(['guest', 'operator']).default('operator'),
});

export const PEOPLE = ['operator', 'read-only'] as const;

/** Of both daemons. */
export const COMMON_ROUTES = {
  metrics: {
    method: 'GET',
    path: '/metrics',
    summary: 'Figures for Prometheus',
    roles: ['master', 'host', ...PEOPLE],
    reply: z.string(),
    contentType: 'text/plain; version=0.0.4; charset=utf-8',
  },
  openapi: {
    method: 'GET',
    path: '/openapi.json',
    summary: 'This document',
    roles: ['master', 'host', ...PEOPLE],
    reply: z.record(z.string(), z.unknown()),
  },
} as const satisfies Record<string, RouteSpec>;
