// The lab's certificate authority and one certificate per host, made with the openssl command. Keys are P-256, mode 0600.

import { chmod, copyFile, mkdir } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { runChecked } from '@snowflock/network';
import { tlsFiles } from './config.ts';
import { hostAddress, hostName, labDir } from './names.ts';

/** A lab is short-lived; a year is out of the way of any. */
const VALID_DAYS = 365;
const EC_KEY = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes'];

export function authorityArgv({ cert, key, name }: { cert: string; key: string; name: string }): string[] {
  // prettier-ignore
  return ['openssl', 'req', '-x509', ...EC_KEY, '-keyout', key, '-out', cert, '-days', String(VALID_DAYS), '-sha256',
    '-subj', `/CN=SnowFlock lab ${name}`,
    '-addext', 'basicConstraints=critical,CA:TRUE,pathlen:0', '-addext', 'keyUsage=critical,keyCertSign,cRLSign'];
}

export function hostCertificateArgv(options: {
  readonly authority: { readonly cert: string; readonly key: string };
  readonly cert: string;
  readonly key: string;
  readonly host: string;
  readonly address: string;
}): string[] {
  const { authority, cert, key, host, address } = options;
  // prettier-ignore
  return ['openssl', 'req', '-x509', '-CA', authority.cert, '-CAkey', authority.key, ...EC_KEY, '-keyout', key, '-out', cert,
    '-days', String(VALID_DAYS), '-sha256', '-subj', `/CN=${host}`,
    '-addext', `subjectAltName=DNS:${host},IP:${address}`, '-addext', 'basicConstraints=critical,CA:FALSE',
    '-addext', 'keyUsage=critical,digitalSignature', '-addext', 'extendedKeyUsage=serverAuth,clientAuth'];
}

/** Writes LAB/ca.crt, LAB/ca.key and LAB/host-K/tls/{ca.crt,host.crt,host.key}. */
export async function makeCertificates(options: {
  readonly name: string;
  readonly hosts: number;
  readonly signal?: AbortSignal | undefined;
}): Promise<void> {
  const { name, hosts, signal } = options;
  const authority = { cert: join(labDir(name), 'ca.crt'), key: join(labDir(name), 'ca.key') };
  await runChecked(authorityArgv({ ...authority, name }), { signal });
  await chmod(authority.key, 0o600);
  const makeHost = async (k: number): Promise<void> => {
    const files = tlsFiles(name, k);
    await mkdir(dirname(files.key), { recursive: true, mode: 0o700 });
    await runChecked(
      hostCertificateArgv({ authority, ...files, host: hostName(k), address: hostAddress(k) }),
      { signal },
    );
    await chmod(files.key, 0o600);
    await copyFile(authority.cert, files.ca);
  };
  // One at a time: some 10 ms each.
  for (let k = 1; k <= hosts; k++) await makeHost(k);
}
