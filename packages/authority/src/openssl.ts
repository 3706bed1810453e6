// X.509 by the openssl command: it is what every Debian has and keeps patched, it checks what it signs, and the authority's
// key is read by nothing else. Keys are P-256 and made by Node.

import { execFile } from 'node:child_process';
import { generateKeyPairSync, X509Certificate } from 'node:crypto';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { SnowflockError, type Role } from '@snowflock/protocol';

/** One signature takes 10 ms; a machine that needs this long is stuck. */
const OPENSSL_TIMEOUT_MS = 20_000;
/** Hosts whose clocks are behind by less accept a certificate from its first moment. */
export const BACKDATED_MS = 24 * 3600 * 1000;
/** commonName is not longer (X.520). */
const NAME = /^[A-Za-z0-9][A-Za-z0-9.:_-]{0,63}$/;
const ALT_NAME = /^[A-Za-z0-9][A-Za-z0-9.:-]{0,252}$/;

function openssl(args: readonly string[]): Promise<string> {
  return new Promise((resolve, reject) => {
    execFile('openssl', args, { timeout: OPENSSL_TIMEOUT_MS }, (error, stdout, stderr) => {
      if (!error) return resolve(stdout);
      const why = 'code' in error && error.code === 'ENOENT' ? 'it is not installed' : complaint(stderr);
      reject(
        new SnowflockError('internal', `openssl ${args[0] ?? ''}: ${why || error.message}`, { cause: error }),
      );
    });
  });
}

/** Its first line of any use. */
function complaint(stderr: string): string {
  return stderr.split('\n').find((line) => line !== '' && !line.startsWith('Using configuration')) ?? '';
}

/** A new private key, PEM (PKCS 8). */
export function newKey(): string {
  const { privateKey } = generateKeyPairSync('ec', { namedCurve: 'prime256v1' });
  return privateKey.export({ type: 'pkcs8', format: 'pem' }).toString();
}

/** A certificate signing request, PEM. It names nothing: names and role are what the authority says. */
export function newRequest(key: string): Promise<string> {
  return inScratch(async (at) => {
    await writeFile(at('key'), key, { mode: 0o600 });
    return openssl(['req', '-new', '-key', at('key'), '-subj', '/CN=request', '-sha256']);
  });
}

/** A directory for files that openssl wants, readable by nobody else and gone afterwards. */
async function inScratch<T>(work: (at: (file: string) => string) => Promise<T>): Promise<T> {
  const dir = await mkdtemp(join(tmpdir(), 'snowflock-openssl-'));
  try {
    return await work((file) => join(dir, file));
  } finally {
    await rm(dir, { recursive: true, force: true });
  }
}

export interface Subject {
  readonly role: Role;
  /** commonName: of a host as cluster_hosts names it. */
  readonly name: string;
  /** Names and addresses that a server may be reached at; of a host its name is one of them. */
  readonly altNames: readonly string[];
}

export interface Validity {
  readonly notBefore: Date;
  readonly notAfter: Date;
}

export function checkSubject({ name, altNames }: Subject): void {
  if (!NAME.test(name))
    throw new SnowflockError(
      'bad-request',
      `'${name.slice(0, 80)}' cannot be the name in a certificate: up to 64 letters, digits, . : _ -`,
    );
  for (const each of altNames)
    if (!ALT_NAME.test(each))
      throw new SnowflockError('bad-request', `'${each.slice(0, 80)}' is not a host name or address`);
}

/** Extensions of a certificate, as openssl's configuration has them. */
export function extensions({ role, altNames }: Subject): string {
  const isServer = role === 'master' || role === 'host';
  const names = altNames.map((name) => `${/^[\d.]+$|:/.test(name) ? 'IP' : 'DNS'}:${name}`);
  return [
    'basicConstraints = critical,CA:FALSE',
    'keyUsage = critical,digitalSignature',
    // People's certificates must not pass for a daemon's.
    `extendedKeyUsage = ${isServer ? 'serverAuth,clientAuth' : 'clientAuth'}`,
    ...(names.length > 0 ? [`subjectAltName = ${names.join(',')}`] : []),
  ].join('\n');
}

const AUTHORITY_EXTENSIONS = `basicConstraints = critical,CA:TRUE,pathlen:0
keyUsage = critical,keyCertSign,cRLSign
subjectKeyIdentifier = hash`;

interface Signing {
  readonly csr: string;
  readonly subject: string;
  readonly extensions: string;
  readonly validity: Validity;
  readonly keyFile: string;
  /** Absent: signed by the request's own key. */
  readonly certFile?: string;
}

/** Checks the request's signature and signs what is said here; of the request itself only the public key is taken. */
function sign(signing: Signing): Promise<string> {
  const { csr, subject, extensions, validity, keyFile, certFile } = signing;
  return inScratch(async (at) => {
    const config = `[ca]
default_ca = this
[this]
database = ${at('index')}
new_certs_dir = ${at('')}
default_md = sha256
unique_subject = no
rand_serial = yes
copy_extensions = none
policy = policy
[policy]
organizationName = optional
organizationalUnitName = optional
commonName = supplied
[certificate]
${extensions}
`;
    await writeFile(at('config'), config);
    await writeFile(at('index'), '');
    await writeFile(at('csr'), csr);
    // prettier-ignore
    await openssl(['ca', '-config', at('config'), '-batch', '-notext', '-extensions', 'certificate',
      '-startdate', asn1Time(validity.notBefore), '-enddate', asn1Time(validity.notAfter), '-subj', subject,
      '-keyfile', keyFile, ...(certFile === undefined ? ['-selfsign'] : ['-cert', certFile]),
      '-in', at('csr'), '-out', at('crt')]);
    return readFile(at('crt'), 'utf8');
  });
}

/** Role and name as the organizational unit and common name: see callerOf in packages/daemon. */
export async function signCertificate(options: {
  readonly authority: { readonly certFile: string; readonly keyFile: string };
  readonly csr: string;
  readonly subject: Subject;
  readonly validity: Validity;
}): Promise<string> {
  const { authority, csr, subject, validity } = options;
  checkSubject(subject);
  return sign({
    csr,
    subject: `/O=SnowFlock/OU=${subject.role}/CN=${subject.name}`,
    extensions: extensions(subject),
    validity,
    ...authority,
  });
}

export async function signAuthority(options: {
  readonly keyFile: string;
  readonly name: string;
  readonly validity: Validity;
}): Promise<string> {
  const { keyFile, name, validity } = options;
  checkSubject({ role: 'master', name, altNames: [] });
  return sign({
    csr: await newRequest(await readFile(keyFile, 'utf8')),
    subject: `/O=SnowFlock/OU=authority/CN=${name}`,
    extensions: AUTHORITY_EXTENSIONS,
    validity,
    keyFile,
  });
}

/** Of a certificate's DER, SHA-256. */
export function fingerprint(pem: string | Buffer): Buffer {
  return Buffer.from(new X509Certificate(pem).fingerprint256.replaceAll(':', ''), 'hex');
}

/** YYYYMMDDHHMMSSZ */
function asn1Time(date: Date): string {
  return `${date.toISOString().replaceAll(/[-:T]/g, '').slice(0, 14)}Z`;
}
