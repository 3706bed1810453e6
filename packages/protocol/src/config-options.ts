// What the options of both daemons have in common: their kinds, where their values come from, and the options themselves.

import { z } from 'zod';
import type { ConfigRead } from './config-reader.ts';

export const text = (what: string) =>
  z.string(`must be a string: ${what}`).min(1, `must not be empty: ${what}`);
export const integer = (what: string, min: number, max: number) =>
  z
    .int(`must be an integer: ${what}`)
    .min(min, `must be at least ${min}: ${what}`)
    .max(max, `must be at most ${max}: ${what}`);
export const oneOf = <const T extends readonly string[]>(...values: T) =>
  z.enum(values, `must be one of ${values.map((value) => `'${value}'`).join(', ')}`);
export const hostName = text('a host name or address').regex(
  /^[A-Za-z0-9][A-Za-z0-9.:-]{0,252}$/,
  'must be a host name or address (letters, digits, . : -)',
);
export const port = integer('a TCP port', 1, 65535);
export const path = text('a path').refine((value) => !value.includes('\0'), 'must be a path');

const count = (what: string, max: number) => integer(what, 1, max);

/** Of a daemon's HTTP listeners; what is counted and what happens above is in packages/daemon/src/http-limits.ts. */
export interface HttpLimits {
  readonly connections: number;
  readonly connectionsPerPeer: number;
  readonly requests: number;
  readonly requestsPerPeer: number;
}

/** Each host's sfld keeps at most 512 connections to sfmd, and every blocked call of a guest is one request. */
export const HTTP_LIMITS_DEFAULT: HttpLimits = {
  connections: 4096,
  connectionsPerPeer: 1024,
  requests: 4096,
  requestsPerPeer: 1024,
};
const LIMIT_MAX = 1_000_000;
const GROUP_NAME = /^[A-Za-z_][A-Za-z0-9_.-]{0,31}$/;

/** `tls` is the name of the daemon's certificate in /etc/snowflock/tls. */
export const commonOptions = (tls: string) => ({
  state_dir: path.default('/var/lib/snowflock'),
  run_dir: path.default('/run/snowflock'),
  socket_group: text('the name of a group')
    .regex(GROUP_NAME, 'must be the name of a group')
    .nullable()
    .default(null),
  tls_ca: path.default('/etc/snowflock/tls/ca.crt'),
  tls_cert: path.default(`/etc/snowflock/tls/${tls}.crt`),
  tls_key: path.default(`/etc/snowflock/tls/${tls}.key`),
  max_connections: count('connections', LIMIT_MAX).default(HTTP_LIMITS_DEFAULT.connections),
  max_connections_per_peer: count('connections', LIMIT_MAX).default(HTTP_LIMITS_DEFAULT.connectionsPerPeer),
  max_requests: count('requests', LIMIT_MAX).default(HTTP_LIMITS_DEFAULT.requests),
  max_requests_per_peer: count('requests', LIMIT_MAX).default(HTTP_LIMITS_DEFAULT.requestsPerPeer),
});
export type CommonOptions = z.infer<z.ZodObject<ReturnType<typeof commonOptions>>>;

/** Files of this daemon's certificate; absolute paths. */
export interface TlsPaths {
  readonly tlsCa: string;
  readonly tlsCert: string;
  readonly tlsKey: string;
}

export interface CommonConfig extends TlsPaths {
  /** What must survive a restart of the machine. */
  readonly stateDir: string;
  /** Sockets and pid files. */
  readonly runDir: string;
  /** Who besides root may use the unix socket; null: nobody. */
  readonly socketGroup: string | null;
  readonly httpLimits: HttpLimits;
}

export function commonConfig({ values }: ConfigRead<CommonOptions>): CommonConfig {
  return {
    stateDir: values.state_dir,
    runDir: values.run_dir,
    socketGroup: values.socket_group,
    tlsCa: values.tls_ca,
    tlsCert: values.tls_cert,
    tlsKey: values.tls_key,
    httpLimits: {
      connections: values.max_connections,
      connectionsPerPeer: values.max_connections_per_peer,
      requests: values.max_requests,
      requestsPerPeer: values.max_requests_per_peer,
    },
  };
}
