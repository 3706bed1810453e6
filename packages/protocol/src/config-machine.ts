// What the configuration files leave open: the contents of the PEM files, and the addresses behind names.

import { createPrivateKey, X509Certificate } from 'node:crypto';
import { lookup } from 'node:dns/promises';
import { existsSync, readFileSync } from 'node:fs';
import { isIP } from 'node:net';
import type { TlsPaths } from './config-options.ts';
import type { TlsIdentity } from './control-client-errors.ts';
import { SnowflockError } from './errors.ts';

const RESOLVE_TIMEOUT_MS = 10_000;

/** Where the last key is kept while key and certificate are being replaced: whoever is killed between the two has a pair. */
export const OLD_KEY_SUFFIX = '.old';

/** Reads the three PEM files. */
export function readTlsIdentity(paths: TlsPaths): TlsIdentity {
  const read = (name: string, file: string): Buffer => {
    try {
      return readFileSync(file);
    } catch (error) {
      const code = (error as NodeJS.ErrnoException).code ?? String(error);
      throw new SnowflockError(
        'bad-config',
        `cannot read ${file} (${name}): ${code}; was this host enrolled?`,
        { cause: error },
      );
    }
  };
  const ca = read('tls_ca', paths.tlsCa);
  const cert = read('tls_cert', paths.tlsCert);
  const key = read('tls_key', paths.tlsKey);
  if (isKeyOf(key, cert)) return { ca, cert, key };
  const oldKey = `${paths.tlsKey}${OLD_KEY_SUFFIX}`;
  if (existsSync(oldKey)) {
    const old = read('tls_key', oldKey);
    if (isKeyOf(old, cert)) return { ca, cert, key: old };
  }
  throw new SnowflockError(
    'bad-config',
    `${paths.tlsKey} (tls_key) is not the key of ${paths.tlsCert}; put the two files of one enrolment there`,
  );
}

function isKeyOf(key: Buffer, cert: Buffer): boolean {
  try {
    return new X509Certificate(cert).checkPrivateKey(createPrivateKey(key));
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    throw new SnowflockError(
      'bad-config',
      `tls_cert and tls_key must be a certificate and its key: ${reason}`,
      {
        cause: error,
      },
    );
  }
}

/** The IP address of a host name; an address is its own. */
export async function resolveHostAddress(host: string): Promise<string> {
  if (isIP(host) !== 0) return host;
  const late = AbortSignal.timeout(RESOLVE_TIMEOUT_MS);
  const expired = new Promise<never>((_resolve, reject) => {
    late.addEventListener('abort', () => reject(new Error(`no answer in ${RESOLVE_TIMEOUT_MS} ms`)), {
      once: true,
    });
  });
  try {
    return (await Promise.race([lookup(host, { family: 0, order: 'ipv4first' }), expired])).address;
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    throw new SnowflockError(
      'bad-config',
      `host name '${host}' does not resolve: ${reason}; give an address, or add it to /etc/hosts`,
      { cause: error },
    );
  }
}
