// sfmd as the cluster's authority: tokens, certificates, revocation (docs/security.md). The authority may be absent: then
// nothing can be issued or revoked here, and everything else works.

import { Authority, CERTIFICATE_DAYS, writeIdentity, type IssuedCertificate } from '@snowflock/authority';
import { X509Certificate } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import type { z } from 'zod';
import {
  SnowflockError,
  type CertificateInfo,
  type CertificateReply,
  type CertificateRequest,
  type RevokeRequest,
  type SfmdConfig,
  type TlsIdentity,
  type TlsPaths,
  type TokenReply,
  type TokenRequest,
} from '@snowflock/protocol';
import type { Log } from '../log.ts';
import { altNamesOf, type Peer } from '../peer.ts';
import { RevokedCertificates } from '../revoked-certificates.ts';
import { EnrollListener } from './enroll-listener.ts';

export class Certificates implements AsyncDisposable {
  /** Kept up to date; for everything that has connections. */
  readonly revoked: RevokedCertificates;
  readonly #authority: Authority | null;
  readonly #dir: string;
  readonly #listener: EnrollListener;
  readonly #log: Log;

  private constructor(
    authority: Authority | null,
    options: { config: SfmdConfig; tls: TlsIdentity; log: Log },
  ) {
    const { config, tls, log } = options;
    this.#authority = authority;
    this.#dir = config.authorityDir;
    this.#log = log;
    this.revoked = new RevokedCertificates(authority?.revoked());
    this.#listener = new EnrollListener({
      address: config.listenAddress,
      port: config.enrollPort,
      tls,
      log,
      tokensUntil: () => authority?.tokensUntil() ?? null,
      enroll: async (request) => this.#reply(await this.#must().redeemToken(request)),
    });
  }

  static async open(options: { config: SfmdConfig; tls: TlsIdentity; log: Log }): Promise<Certificates> {
    const authority = await Authority.open(options.config.authorityDir);
    if (
      authority &&
      !new X509Certificate(authority.certificate).verify(new X509Certificate(options.tls.ca).publicKey)
    )
      throw new SnowflockError(
        'bad-config',
        `${options.config.authorityDir} holds another authority than ${options.config.tlsCa} (authority_dir, tls_ca)`,
      );
    const certificates = new Certificates(authority, options);
    await certificates.#listener.update();
    return certificates;
  }

  get canRevoke(): boolean {
    return this.#authority !== null;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.#listener[Symbol.asyncDispose]();
  }

  async issueToken(asked: z.infer<typeof TokenRequest>, by: string): Promise<TokenReply> {
    const { host, altNames, validMinutes } = asked;
    const { token, expiresAt } = await this.#must().issueToken({
      host,
      altNames,
      validMs: validMinutes * 60_000,
    });
    await this.#listener.update();
    this.#log.info({ host, expiresAt: new Date(expiresAt), by }, 'enrolment token issued');
    return { token, expiresAt: new Date(expiresAt).toISOString(), port: this.#listener.port ?? 0 };
  }

  list(): CertificateInfo[] {
    return this.#must().certificates().map(info);
  }

  async issue(asked: z.infer<typeof CertificateRequest>, by: string): Promise<CertificateReply> {
    const { name, role, csr, days } = asked;
    const cert = await this.#must().issue({ name, role, altNames: [] }, csr, days);
    this.#log.info({ subject: name, role, by }, 'certificate issued');
    return this.#reply(cert);
  }

  /** For whoever shows a valid one: the same name, role and addresses. */
  async renew(peer: Peer, csr: string): Promise<CertificateReply> {
    if (!peer.certificate)
      throw new SnowflockError('bad-request', 'the caller shows no certificate that could be renewed');
    const { role, name } = peer;
    const cert = await this.#must().issue({ role, name, altNames: peer.altNames() }, csr, CERTIFICATE_DAYS);
    this.#log.info({ subject: name, role }, 'certificate renewed');
    return this.#reply(cert);
  }

  /** sfmd's own, for the same name and addresses, into its files. */
  async renewOwn(paths: TlsPaths): Promise<void> {
    const current = new X509Certificate(await readFile(paths.tlsCert));
    const { CN: name } = current.toLegacyObject().subject;
    if (typeof name !== 'string')
      throw new SnowflockError('bad-config', `${paths.tlsCert} names nobody; 'snowflock init' makes another`);
    const subject = { role: 'master', name, altNames: altNamesOf(current.subjectAltName ?? '') } as const;
    const identity = await this.#must().newIdentity(subject);
    await writeIdentity({ ca: paths.tlsCa, cert: paths.tlsCert, key: paths.tlsKey }, identity);
  }

  renewTls(tls: TlsIdentity): void {
    this.#listener.renewTls(tls);
  }

  /** In force when it answers: here at once, on every host with the answer to its next report. */
  async revoke(asked: z.infer<typeof RevokeRequest>, by: string): Promise<CertificateInfo[]> {
    const revoked = await this.#must().revoke({ name: asked.name, role: asked.role });
    this.revoked.replace(this.#must().revoked());
    await this.#listener.update();
    const serials = revoked.map(({ serial }) => serial);
    this.#log.warn({ subject: asked.name, serials, by }, 'certificates revoked');
    return revoked.map(info);
  }

  #must(): Authority {
    if (this.#authority) return this.#authority;
    throw new SnowflockError(
      'unavailable',
      `there is no certificate authority in ${this.#dir} (authority_dir); 'snowflock init' makes one`,
    );
  }

  #reply(cert: string): CertificateReply {
    return { cert, ca: this.#must().certificate };
  }
}

function info({ serial, name, role, notAfter, revokedAt }: IssuedCertificate): CertificateInfo {
  return {
    serial,
    name,
    role,
    notAfter: new Date(notAfter).toISOString(),
    revokedAt: revokedAt === null ? null : new Date(revokedAt).toISOString(),
  };
}
