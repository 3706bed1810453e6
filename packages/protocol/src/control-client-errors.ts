// What went wrong in a control request, in words: transport failures and error replies as SnowflockErrors.

import { ErrorReply } from './control.ts';
import { isErrorCode, SnowflockError } from './errors.ts';

/** Certificate authority of the cluster, and this machine's certificate and key: PEM. */
export interface TlsIdentity {
  readonly ca: Buffer;
  readonly cert: Buffer;
  readonly key: Buffer;
  /** By serial number; absent: none is. */
  readonly isRevoked?: (serial: string) => boolean;
}

export type ControlTarget =
  | { readonly socketPath: string }
  | {
      readonly address: string;
      readonly port: number;
      /** Without certificate and key only for enrolment, where a token stands for them. */
      readonly tls: TlsIdentity | Pick<TlsIdentity, 'ca'>;
      /** Name that the peer's certificate must be for; without it any certificate of the cluster's CA will do. */
      readonly host?: string;
    };

/** How messages name a peer. */
export function describeTarget(target: ControlTarget): string {
  if ('socketPath' in target) return target.socketPath;
  const at = `${target.address.includes(':') ? `[${target.address}]` : target.address}:${target.port}`;
  return target.host === undefined || target.host === target.address ? at : `${target.host} (${at})`;
}

/** An answer with a status of 400 or more. */
export function fromReply({
  what,
  status,
  body,
}: {
  what: string;
  status: number;
  body: Buffer;
}): SnowflockError {
  let reply: unknown;
  try {
    reply = JSON.parse(body.toString('utf8'));
  } catch (error) {
    return new SnowflockError(
      'unavailable',
      `${what}: HTTP status ${status} without a SnowFlock error in it`,
      {
        cause: error,
      },
    );
  }
  const parsed = ErrorReply.safeParse(reply);
  if (!parsed.success || !isErrorCode(parsed.data.error.code))
    return new SnowflockError('unavailable', `${what}: HTTP status ${status} with an error of no known kind`);
  return new SnowflockError(parsed.data.error.code, parsed.data.error.message);
}

const DOWN: Readonly<Record<string, string>> = {
  ECONNREFUSED: 'nothing listens there; start the daemon on that host',
  ENOENT: 'there is no such socket; is the daemon started, and is run_dir the same as in its configuration?',
  EHOSTUNREACH: 'the host cannot be reached; check that it is up and its network',
  ENETUNREACH: 'the network cannot be reached; check the routes of this host',
  EHOSTDOWN: 'the host is down',
  ENOTFOUND: 'the name does not resolve; check hostname and master_host in the configuration',
  EAI_AGAIN: 'the name does not resolve at the moment; check the name service',
  ETIMEDOUT: 'the host stopped answering',
  ECONNABORTED: 'the connection was aborted',
};
const RESET = new Set(['ECONNRESET', 'EPIPE', 'ERR_STREAM_PREMATURE_CLOSE', 'ERR_STREAM_DESTROYED']);
const CERTIFICATE =
  /^(ERR_TLS_|ERR_SSL_|ERR_OSSL_|CERT_|DEPTH_ZERO_|SELF_SIGNED_|UNABLE_TO_|CRL_|INVALID_CA|HOSTNAME_MISMATCH)/;

/** A failure before any answer was complete. */
export function fromTransport(
  error: Error,
  { what, method }: { what: string; method: string },
): SnowflockError {
  if (error instanceof SnowflockError) return error;
  const code = 'code' in error && typeof error.code === 'string' ? error.code : '';
  const fail = (kind: 'host-down' | 'unauthorized' | 'unavailable', why: string): SnowflockError =>
    new SnowflockError(kind, `${what}: ${why}`, { cause: error });
  const down = DOWN[code];
  if (down !== undefined) return fail('host-down', `${down} (${code})`);
  if (code === 'EACCES' || code === 'EPERM')
    return fail('unauthorized', `not permitted (${code}); are you root?`);
  if (RESET.has(code)) {
    const doubt = method === 'POST' ? '; it may or may not have taken effect' : '';
    return fail('host-down', `the peer closed the connection (${code})${doubt}`);
  }
  if (CERTIFICATE.test(code))
    return fail(
      'unauthorized',
      `TLS refused (${code}: ${error.message}); are both certificates from this cluster's CA?`,
    );
  return fail('unavailable', code === '' ? error.message : `${error.message} (${code})`);
}
