// The cluster's certificate authority: a directory with its key, its certificate, and the register of what it issued.
//
//   DIR/ca.key              mode 0600; may be kept elsewhere, then nothing can be issued, but revocation works
//   DIR/ca.crt
//   DIR/certificates.json   issued and revoked certificates, open tokens (hashed)
//
//   token     issued ──redeemed once, in time, for its host──▶ gone          └──late──▶ gone
//   certificate   issued ──revoke──▶ revoked ──expires──▶ forgotten
//
// Invariants: one process writes at a time: `snowflock init` makes it, then sfmd owns it. A token is gone from the disk
// before the certificate is signed for it. What has expired is forgotten: it is refused without being listed.

import { existsSync } from 'node:fs';
import { mkdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { X509Certificate } from 'node:crypto';
import { z } from 'zod';
import { ROLES, SnowflockError, type Role } from '@snowflock/protocol';
import { writeWhole } from './identity-files.ts';
import {
  BACKDATED_MS,
  fingerprint,
  newKey,
  newRequest,
  signAuthority,
  signCertificate,
  type Subject,
} from './openssl.ts';
import { formatToken, hashSecret, isSecret, newSecret } from './token.ts';

const DAY_MS = 24 * 3600 * 1000;
export const AUTHORITY_DAYS = 3650;
export const CERTIFICATE_DAYS = 365;
export const CERTIFICATE_DAYS_MAX = 1095;
/** Of each of the lists: several for every host there may be. */
const REGISTER_MAX = 65_536;
const TOKENS_MAX = 4096;
const REQUEST_MAX_BYTES = 4096;

const IssuedCertificate = z.object({
  serial: z.string(),
  name: z.string(),
  role: z.enum(ROLES),
  /** ms since 1970, as all times here. */
  notAfter: z.number(),
  revokedAt: z.number().nullable(),
});
export type IssuedCertificate = z.infer<typeof IssuedCertificate>;

const Register = z.object({
  version: z.literal(1),
  certificates: z.array(IssuedCertificate),
  tokens: z.array(
    z.object({ hash: z.string(), host: z.string(), altNames: z.array(z.string()), expiresAt: z.number() }),
  ),
});
type Register = z.infer<typeof Register>;

export interface Identity {
  readonly ca: string;
  readonly cert: string;
  readonly key: string;
}

export class Authority {
  readonly dir: string;
  readonly certificate: string;
  #register: Register;
  #writes: Promise<unknown> = Promise.resolve();

  private constructor(dir: string, certificate: string, register: Register) {
    this.dir = dir;
    this.certificate = certificate;
    this.#register = register;
  }

  /** Makes a new one; one that is there is never touched. */
  static async create(dir: string, { name }: { name: string }): Promise<Authority> {
    if (existsSync(join(dir, 'ca.key')) || existsSync(join(dir, 'ca.crt')))
      throw new SnowflockError('bad-request', `${dir} holds an authority already; it is not replaced`);
    await mkdir(dir, { recursive: true, mode: 0o700 });
    const keyFile = join(dir, 'ca.key');
    await writeWhole(keyFile, newKey(), 0o600);
    const certificate = await signAuthority({ keyFile, name, validity: validity(AUTHORITY_DAYS) });
    const authority = new Authority(dir, certificate, { version: 1, certificates: [], tokens: [] });
    await authority.#save();
    // Last: an authority that has its certificate is whole.
    await writeWhole(join(dir, 'ca.crt'), certificate, 0o644);
    return authority;
  }

  /** Null when there is none in this directory. */
  static async open(dir: string): Promise<Authority | null> {
    if (!existsSync(join(dir, 'ca.crt'))) return null;
    const file = join(dir, 'certificates.json');
    try {
      const register = Register.parse(JSON.parse(await readFile(file, 'utf8')));
      return new Authority(dir, await readFile(join(dir, 'ca.crt'), 'utf8'), register);
    } catch (error) {
      const reason = error instanceof Error ? error.message : String(error);
      // Going on without it would accept revoked certificates.
      throw new SnowflockError('bad-config', `cannot read ${file}: ${reason}; restore it from a backup`, {
        cause: error,
      });
    }
  }

  /** Signs a request for this subject and records it. */
  async issue(subject: Subject, csr: string, days = CERTIFICATE_DAYS): Promise<string> {
    if (csr.length > REQUEST_MAX_BYTES || !csr.startsWith('-----BEGIN CERTIFICATE REQUEST-----'))
      throw new SnowflockError('bad-request', 'this is not a certificate signing request (PEM)');
    const keyFile = join(this.dir, 'ca.key');
    if (!existsSync(keyFile))
      throw new SnowflockError(
        'unavailable',
        `${keyFile} is not there, so no certificate can be issued; bring the authority's key back for the time being`,
      );
    if (this.#register.certificates.length >= REGISTER_MAX)
      throw new SnowflockError('unavailable', `${REGISTER_MAX} certificates are issued and have not expired`);
    const authority = { keyFile, certFile: join(this.dir, 'ca.crt') };
    const cert = await signCertificate({ authority, csr, subject, validity: validity(days) });
    const { serialNumber, validTo } = new X509Certificate(cert);
    const { name, role } = subject;
    await this.#change((register) => {
      register.certificates.push({
        serial: serialNumber,
        name,
        role,
        notAfter: Date.parse(validTo),
        revokedAt: null,
      });
    });
    return cert;
  }

  /** Key, request and certificate in one; for who holds the authority's directory. */
  async newIdentity(subject: Subject, days = CERTIFICATE_DAYS): Promise<Identity> {
    const key = newKey();
    return { ca: this.certificate, cert: await this.issue(subject, await newRequest(key), days), key };
  }

  /** A token for one host; it replaces an earlier one for the same host. */
  async issueToken(options: {
    readonly host: string;
    readonly altNames: readonly string[];
    readonly validMs: number;
  }): Promise<{ token: string; expiresAt: number }> {
    const { host, validMs } = options;
    const secret = newSecret();
    const expiresAt = Date.now() + validMs;
    await this.#change((register) => {
      register.tokens = register.tokens.filter((each) => each.host !== host);
      if (register.tokens.length >= TOKENS_MAX)
        throw new SnowflockError(
          'unavailable',
          `${TOKENS_MAX} tokens are open; wait until some have expired`,
        );
      register.tokens.push({ hash: hashSecret(secret), host, altNames: [...options.altNames], expiresAt });
    });
    return { token: formatToken({ fingerprint: fingerprint(this.certificate), secret }), expiresAt };
  }

  /** When the last open token expires; null: none is open. */
  tokensUntil(): number | null {
    const open = this.#register.tokens.map(({ expiresAt }) => expiresAt).filter((at) => at > Date.now());
    return open.length === 0 ? null : Math.max(...open);
  }

  /** The certificate for a token's host. Throws 'unauthorized' and says nothing about why. */
  async redeemToken({ secret, host, csr }: { secret: string; host: string; csr: string }): Promise<string> {
    let found: Register['tokens'][number] | undefined;
    // All of them, always: the time taken says nothing about any.
    for (const each of this.#register.tokens) if (isSecret(secret, each.hash)) found = each;
    if (!found || found.expiresAt <= Date.now() || found.host !== host)
      throw new SnowflockError(
        'unauthorized',
        `the token is not valid for host '${host}': it was used, has expired, or is for another host; ` +
          `'snowflock enroll --issue ${host}' on the master host prints a new one`,
      );
    const token = found;
    // Gone before the first await, in memory: a second request at the same time does not find it.
    this.#register.tokens = this.#register.tokens.filter((each) => each !== token);
    await this.#save();
    return this.issue({ role: 'host', name: host, altNames: [...new Set([host, ...token.altNames])] }, csr);
  }

  certificates(): readonly IssuedCertificate[] {
    return this.#register.certificates;
  }

  /** Serial numbers of certificates that are revoked and have not expired. */
  revoked(): string[] {
    const now = Date.now();
    return this.#register.certificates
      .filter(({ revokedAt, notAfter }) => revokedAt !== null && notAfter > now)
      .map(({ serial }) => serial);
  }

  /** Revokes every certificate with this name (and role), and its open tokens. Answers those that it revoked. */
  async revoke({ name, role }: { name: string; role: Role | undefined }): Promise<IssuedCertificate[]> {
    const now = Date.now();
    const found = this.#register.certificates.filter(
      (each) =>
        each.name === name &&
        each.revokedAt === null &&
        each.notAfter > now &&
        (role === undefined ? each.role !== 'master' : each.role === role),
    );
    if (found.length === 0)
      throw new SnowflockError(
        'bad-request',
        `no valid certificate with the name '${name}' is known; 'snowflock cert list' shows all`,
      );
    await this.#change((register) => {
      for (const each of found) each.revokedAt = now;
      register.tokens = register.tokens.filter(({ host }) => host !== name);
    });
    return found;
  }

  async #change(change: (register: Register) => void): Promise<void> {
    change(this.#register);
    const now = Date.now();
    this.#register.tokens = this.#register.tokens.filter(({ expiresAt }) => expiresAt > now);
    this.#register.certificates = this.#register.certificates.filter(({ notAfter }) => notAfter > now);
    await this.#save();
  }

  /** One write after the other, each with what is true by then. */
  async #save(): Promise<void> {
    const write = this.#writes.then(() =>
      writeWhole(join(this.dir, 'certificates.json'), `${JSON.stringify(this.#register, null, 1)}\n`, 0o600),
    );
    this.#writes = write.catch(() => undefined); // told to whoever asked for it
    await write;
  }
}

function validity(days: number): { notBefore: Date; notAfter: Date } {
  const now = Date.now();
  return { notBefore: new Date(now - BACKDATED_MS), notAfter: new Date(now + days * DAY_MS) };
}
