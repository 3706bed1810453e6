import { X509Certificate } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import {
  Authority,
  BACKDATED_MS,
  extensions,
  fingerprint,
  formatToken,
  newKey,
  newRequest,
  newSecret,
  parseToken,
} from '../src/index.ts';

let dir: string;
beforeEach(() => (dir = mkdtempSync(join(tmpdir(), 'snowflock-authority-'))));
afterEach(() => rmSync(dir, { recursive: true }));

const HOUR_MS = 3600_000;
const make = () => Authority.create(join(dir, 'a'), { name: 'test' });
const secretOf = (token: string): string => parseToken(token).secret;
const message = async (promise: Promise<unknown>): Promise<string> =>
  promise.then(
    () => 'no error',
    (error: unknown) => String(error),
  );

describe('the authority', () => {
  it('makes certificates with name, role and addresses, which its own certificate verifies', async () => {
    const authority = await make();
    const ca = new X509Certificate(authority.certificate);
    expect([ca.ca, ca.subject]).toEqual([true, 'O=SnowFlock\nOU=authority\nCN=test']);
    expect(statSync(join(dir, 'a/ca.key')).mode & 0o777).toBe(0o600);
    expect(statSync(join(dir, 'a')).mode & 0o777).toBe(0o700);
    const host = await authority.newIdentity({
      role: 'host',
      name: 'h1',
      altNames: ['h1', '10.0.0.7', 'fe80::1'],
    });
    const certificate = new X509Certificate(host.cert);
    expect(certificate.verify(ca.publicKey)).toBe(true);
    expect(certificate.subject).toBe('O=SnowFlock\nOU=host\nCN=h1');
    expect(certificate.checkIP('10.0.0.7')).toBe('10.0.0.7');
    expect(certificate.checkHost('h1')).toBe('h1');
    expect(certificate.checkHost('h2')).toBeUndefined();
    expect(certificate.ca).toBe(false);
    // Clocks that are behind by less accept it.
    expect(Date.parse(certificate.validFrom)).toBeLessThan(Date.now() - BACKDATED_MS + HOUR_MS);
    expect(Date.parse(ca.validFrom)).toBeLessThan(Date.now() - BACKDATED_MS + HOUR_MS);
    const [issued] = authority.certificates();
    expect(issued).toMatchObject({
      serial: certificate.serialNumber,
      name: 'h1',
      role: 'host',
      revokedAt: null,
    });
  });

  it('gives people no certificate that could pass for a daemon', () => {
    const subject = { name: 'x', altNames: [] };
    expect(extensions({ ...subject, role: 'operator' })).toMatch(/extendedKeyUsage = clientAuth$/m);
    expect(extensions({ ...subject, role: 'read-only' })).toMatch(/extendedKeyUsage = clientAuth$/m);
    expect(extensions({ ...subject, role: 'host' })).toMatch(/serverAuth/);
  });

  it('takes only the public key of a request, whatever else it asks for', async () => {
    const authority = await make();
    const key = newKey();
    const cert = await authority.issue(
      { role: 'read-only', name: 'eve', altNames: [] },
      await newRequest(key),
    );
    expect(new X509Certificate(cert).subject).toBe('O=SnowFlock\nOU=read-only\nCN=eve');
    expect(new X509Certificate(cert).subjectAltName).toBeUndefined();
    const tampered = (await newRequest(key)).replace(
      /\n(.{10})/,
      (_all, part: string) => `\n${[...part].reverse().join('')}`,
    );
    expect(await message(authority.issue({ role: 'host', name: 'h', altNames: [] }, tampered))).toMatch(
      /openssl/,
    );
    expect(await message(authority.issue({ role: 'host', name: 'h', altNames: [] }, 'x'))).toMatch(
      /not a cert/,
    );
    for (const name of ['a/CN=b', 'a b', '', '-x', 'x'.repeat(65), 'a\nb'])
      expect(
        await message(authority.issue({ role: 'host', name, altNames: [] }, await newRequest(key))),
      ).toMatch(/cannot be the name/);
    expect(
      await message(
        authority.issue({ role: 'host', name: 'h', altNames: ['h,IP:1.2.3.4'] }, await newRequest(key)),
      ),
    ).toMatch(/not a host name/);
  });

  it('is never replaced, and is found again as it was', async () => {
    const authority = await make();
    expect(await message(make())).toMatch(/holds an authority already/);
    await authority.newIdentity({ role: 'operator', name: 'ann', altNames: [] });
    const { token } = await authority.issueToken({ host: 'h1', altNames: [], validMs: HOUR_MS });
    await authority.revoke({ name: 'ann', role: undefined });
    const again = await Authority.open(join(dir, 'a'));
    expect(again?.certificates()).toEqual(authority.certificates());
    expect(again?.revoked()).toHaveLength(1);
    const csr = await newRequest(newKey());
    expect(await again?.redeemToken({ secret: secretOf(token), host: 'h1', csr })).toContain(
      'BEGIN CERTIFICATE',
    );
    expect(await Authority.open(join(dir, 'nothing'))).toBeNull();
    writeFileSync(join(dir, 'a/certificates.json'), '{');
    expect(await message(Authority.open(join(dir, 'a')))).toMatch(/certificates.json.*restore it/);
  });

  it('revokes what has a name, and knows what it does not know', async () => {
    const authority = await make();
    await authority.newIdentity({ role: 'master', name: 'h1', altNames: ['h1'] });
    const first = await authority.newIdentity({ role: 'host', name: 'h1', altNames: ['h1'] });
    const second = await authority.newIdentity({ role: 'host', name: 'h1', altNames: ['h1'] });
    await authority.issueToken({ host: 'h1', altNames: [], validMs: HOUR_MS });
    const serials = [first, second].map(({ cert }) => new X509Certificate(cert).serialNumber);
    expect((await authority.revoke({ name: 'h1', role: undefined })).map(({ serial }) => serial)).toEqual(
      serials,
    );
    expect(authority.revoked()).toEqual(serials);
    expect(authority.tokensUntil()).toBeNull();
    expect(await message(authority.revoke({ name: 'h1', role: undefined }))).toMatch(/no valid certificate/);
    expect(await message(authority.revoke({ name: 'nobody', role: undefined }))).toMatch(
      /no valid certificate/,
    );
  });
});

describe('tokens', () => {
  it('are good once, for their host, in time; only a hash of them is kept', async () => {
    const authority = await make();
    const csr = await newRequest(newKey());
    const { token } = await authority.issueToken({ host: 'h1', altNames: ['10.0.0.1'], validMs: HOUR_MS });
    expect(parseToken(token).fingerprint).toEqual(fingerprint(authority.certificate));
    const secret = secretOf(token);
    expect(readFileSync(join(dir, 'a/certificates.json'), 'utf8')).not.toContain(secret);
    expect(await message(authority.redeemToken({ secret, host: 'h2', csr }))).toMatch(
      /not valid for host 'h2'/,
    );
    expect(await message(authority.redeemToken({ secret: newSecret(), host: 'h1', csr }))).toMatch(
      /not valid/,
    );
    // Two at once: one gets it.
    const both = await Promise.all(
      [0, 1].map(() => message(authority.redeemToken({ secret, host: 'h1', csr }))),
    );
    expect(both.sort()).toEqual([expect.stringMatching(/not valid/), 'no error']);
    const certificate = authority.certificates().find(({ name }) => name === 'h1');
    expect(certificate?.role).toBe('host');

    const short = await authority.issueToken({ host: 'h3', altNames: [], validMs: 1 });
    await new Promise((resolve) => setTimeout(resolve, 5));
    expect(await message(authority.redeemToken({ secret: secretOf(short.token), host: 'h3', csr }))).toMatch(
      /not valid/,
    );
    const first = await authority.issueToken({ host: 'h4', altNames: [], validMs: HOUR_MS });
    await authority.issueToken({ host: 'h4', altNames: [], validMs: HOUR_MS });
    expect(await message(authority.redeemToken({ secret: secretOf(first.token), host: 'h4', csr }))).toMatch(
      /not valid/,
    );
  });

  it('are recognised by their form, and errors do not repeat them', () => {
    const token = formatToken({ fingerprint: Buffer.alloc(32, 1), secret: newSecret() });
    expect(token).toMatch(/^sf1_[A-Za-z0-9_-]{75}$/);
    for (const wrong of ['', 'sf1_', token.slice(0, -2), token.slice(4), `${token}AAAA`]) {
      expect(() => parseToken(wrong)).toThrow(/not an enrolment token/);
      try {
        parseToken(wrong);
      } catch (error) {
        if (wrong.length > 10) expect(String(error)).not.toContain(wrong.slice(4, 30));
      }
    }
  });
});
