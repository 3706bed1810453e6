// sfmd as the authority of its system, over real sockets: who gets a certificate, and what a certificate is worth.

import { X509Certificate } from 'node:crypto';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync, statSync } from 'node:fs';
import * as net from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import * as tls from 'node:tls';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { z } from 'zod';
import {
  Authority,
  enroll,
  identityFiles,
  newKey,
  newRequest,
  parseToken,
  renew,
  signCertificate,
  writeIdentity,
} from '@snowflock/authority';
import {
  CertificateInfo,
  ControlClient,
  HostReportReply,
  parseSfmdConfig,
  SnowflockError,
  TokenReply,
  type Role,
  type TlsIdentity,
} from '@snowflock/protocol';
import { createLog } from '../src/log.ts';
import { runSfmd } from '../src/sfmd/run.ts';
import { RevokedFile } from '../src/sfld/revoked-file.ts';

const TIMEOUT_MS = 5000;
let dir: string;
let authorityDir: string;
let port: number;
let stop: AbortController;
let running: Promise<void>;
let lines: string[];
const open: ControlClient[] = [];

const buffers = (identity: { ca: string; cert: string; key: string }): TlsIdentity => ({
  ca: Buffer.from(identity.ca),
  cert: Buffer.from(identity.cert),
  key: Buffer.from(identity.key),
});

async function startSfmd(): Promise<void> {
  lines = [];
  stop = new AbortController();
  const config = parseSfmdConfig(
    `cluster_hosts = [{'host': 'h1', 'cpus': 2, 'RAM': 1<<30}, {'host': 'h2', 'cpus': 2, 'RAM': 1<<30}]
address = '127.0.0.1'
authority_dir = 'a'
run_dir = 'run'
state_dir = 'state'
tls_ca = 'tls/ca.crt'
tls_cert = 'tls/sfmd.crt'
tls_key = 'tls/sfmd.key'
`,
    join(dir, 'sfmd.cfg'),
  );
  const ready = Promise.withResolvers<number>();
  running = runSfmd(
    { ...config, masterListenPort: 0, enrollPort: 0 },
    {
      log: createLog({ name: 'sfmd', level: 'trace', write: (line) => lines.push(line) }),
      onReady: ready.resolve,
      signal: stop.signal,
    },
  );
  running.catch(ready.reject);
  port = await ready.promise;
}

beforeEach(async () => {
  dir = mkdtempSync(join(tmpdir(), 'snowflock-enrol-'));
  authorityDir = join(dir, 'a');
  const authority = await Authority.create(authorityDir, { name: 'test' });
  const master = await authority.newIdentity({
    role: 'master',
    name: 'm',
    altNames: ['master', '127.0.0.1'],
  });
  await writeIdentity(identityFiles(join(dir, 'tls'), 'sfmd'), master);
  await startSfmd();
});
afterEach(async () => {
  for (const client of open.splice(0)) client.close();
  stop.abort();
  await running;
  rmSync(dir, { recursive: true });
});

function client(target: 'unix' | TlsIdentity): ControlClient {
  const made =
    target === 'unix'
      ? new ControlClient({ socketPath: join(dir, 'run/sfmd.sock') })
      : new ControlClient({ address: '127.0.0.1', port, tls: target, host: 'master' });
  open.push(made);
  return made;
}
const ask = <T>(peer: ControlClient, line: string, reply: z.ZodType<T>, body?: unknown): Promise<T> => {
  const [method, path = ''] = line.split(' ') as ['GET' | 'POST' | 'PUT', string?];
  return peer.request({ method, path, body, reply, timeoutMs: TIMEOUT_MS });
};
const outcome = async (work: Promise<unknown>): Promise<string> =>
  work.then(
    () => 'ok',
    (error: unknown) => (error instanceof SnowflockError ? `${error.code}: ${error.message}` : String(error)),
  );
const state = (peer: ControlClient): Promise<string> => outcome(ask(peer, 'GET /v1/state', z.unknown()));
const token = (host: string, validMinutes = 5) =>
  ask(client('unix'), 'POST /v1/tokens', TokenReply, { host, validMinutes });
const filesOf = (name: string) => identityFiles(join(dir, name), 'host');
const identityOf = (name: string): TlsIdentity => {
  const { ca, cert, key } = filesOf(name);
  return { ca: readFileSync(ca), cert: readFileSync(cert), key: readFileSync(key) };
};
async function enrolled(name: string): Promise<TlsIdentity> {
  const issued = await token(name);
  const master = { address: '127.0.0.1', port: issued.port };
  await enroll({ token: issued.token, master, host: name, files: filesOf(name) });
  return identityOf(name);
}
const revoke = (name: string) =>
  ask(client('unix'), 'POST /v1/certificates/revoke', z.array(CertificateInfo), { name });

describe('enrolment', () => {
  it('gives a host its certificate, once; the key is made and stays there; then nothing listens', async () => {
    const issued = await token('h1');
    const master = { address: '127.0.0.1', port: issued.port };
    const try_ = (host: string, files = 'x', with_ = issued.token, at = master) =>
      outcome(enroll({ token: with_, master: at, host, files: filesOf(files) }));
    expect(await try_('h2')).toMatch(/^unauthorized: the token is not valid for host 'h2'/);
    expect(await try_('h1', 'h1')).toBe('ok');
    const { key, cert } = filesOf('h1');
    expect(statSync(key).mode & 0o777).toBe(0o600);
    expect(new X509Certificate(readFileSync(cert)).subject).toBe('O=SnowFlock\nOU=host\nCN=h1');
    const report = { address: '127.0.0.1', sfldPort: 1, accel: 'tcg' };
    const reply = await ask(client(identityOf('h1')), 'PUT /v1/hosts/h1', HostReportReply, report);
    expect(reply.revoked).toEqual([]);
    expect(await outcome(ask(client(identityOf('h1')), 'PUT /v1/hosts/h2', z.unknown(), report))).toMatch(
      /^unauthorized: .*may not speak for 'h2'/,
    );
    await expect.poll(() => try_('h1')).toMatch(/^host-down: cannot reach the master for enrolment/);
    // With another token open it listens again, and the used one stays used.
    const second = await token('h2');
    expect(await try_('h1', 'x', issued.token, { ...master, port: second.port })).toMatch(
      /^unauthorized: the token/,
    );

    const log = lines.join('');
    for (const secret of [issued.token, parseToken(issued.token).secret, second.token, 'PRIVATE KEY'])
      expect(log).not.toContain(secret);
    for (const file of ['ca.key', '../tls/sfmd.key', '../h1/host.key'])
      expect(log).not.toContain(readFileSync(join(authorityDir, file), 'utf8').split('\n')[1]);
    expect(log).toContain('host enrolled');
  });

  it('says nothing to a master of another authority', async () => {
    const other = await Authority.create(join(dir, 'b'), { name: 'other' });
    const { port: at } = await token('h1');
    const foreign = await other.issueToken({ host: 'h1', altNames: [], validMs: 60_000 });
    const master = { address: '127.0.0.1', port: at };
    expect(await outcome(enroll({ token: foreign.token, master, host: 'h1', files: filesOf('h1') }))).toMatch(
      /^unauthorized: .*has another certificate authority; nothing was sent/,
    );
    // The right authority under a name that the master does not have.
    const { token: good } = await token('h1');
    const elsewhere = { address: 'localhost', port: at };
    expect(
      await outcome(enroll({ token: good, master: elsewhere, host: 'h1', files: filesOf('h1') })),
    ).toMatch(/^(unauthorized|host-down)/);
    expect(lines.join('')).not.toContain('host enrolled');
  });

  it('takes one small request and nothing else, and not many of them', async () => {
    const { port: at } = await token('h1');
    const ca = Buffer.from((await Authority.open(authorityDir))?.certificate ?? '');
    const peer = new ControlClient({ address: '127.0.0.1', port: at, tls: { ca }, host: 'master' });
    open.push(peer);
    expect(await outcome(ask(peer, 'GET /v1/state', z.unknown()))).toMatch(/^bad-request: here hosts enrol/);
    expect(await outcome(ask(peer, 'POST /v1/clusters', z.unknown(), {}))).toMatch(
      /^bad-request: here hosts enrol/,
    );
    expect(await outcome(ask(peer, 'POST /v1/enroll', z.unknown(), { host: 1 }))).toMatch(
      /^bad-request: body/,
    );
    expect(await outcome(ask(peer, 'POST /v1/enroll', z.unknown(), { x: 'y'.repeat(20_000) }))).toMatch(
      /^too-large|^host-down/,
    );
    const plain = net.connect({ host: '127.0.0.1', port: at });
    plain.on('error', () => undefined).resume();
    plain.write('\x16\x03\x01garbage\r\n\r\n'.repeat(100));
    await once(plain, 'close');
    const garbage = tls.connect({ host: '127.0.0.1', port: at, rejectUnauthorized: false });
    garbage.on('error', () => undefined).resume();
    await once(garbage, 'secureConnect');
    garbage.write(Buffer.alloc(4096, 0x41));
    await once(garbage, 'close');
    const secret = { secret: 'A'.repeat(32), host: 'h1', csr: '' };
    // More at a time than it takes connections would be cut without an answer.
    const many: string[] = [];
    for (let round = 0; round < 2; round++)
      many.push(
        ...(await Promise.all(
          Array.from({ length: 12 }, () => outcome(ask(peer, 'POST /v1/enroll', z.unknown(), secret))),
        )),
      );
    expect(
      many.filter((each) => each.startsWith('busy: more than 20 attempts')).length,
    ).toBeGreaterThanOrEqual(4);
    expect(many.filter((each) => each === 'ok')).toEqual([]);
  });
});

describe('a certificate', () => {
  const signed = async (
    role: string,
    from: number,
    until: number,
    altNames: readonly string[] = [],
  ): Promise<TlsIdentity> => {
    const key = newKey();
    const cert = await signCertificate({
      authority: { certFile: join(authorityDir, 'ca.crt'), keyFile: join(authorityDir, 'ca.key') },
      csr: await newRequest(key),
      subject: { role: role as Role, name: 'x', altNames },
      validity: { notBefore: new Date(Date.now() + from), notAfter: new Date(Date.now() + until) },
    });
    return buffers({ ca: readFileSync(join(authorityDir, 'ca.crt'), 'utf8'), cert, key });
  };

  it('is nothing before its time and after it, also on a connection that is open', async () => {
    expect(await state(client(await signed('operator', -7200_000, -3600_000)))).toMatch(
      /^(unauthorized|host-down)/,
    );
    expect(await state(client(await signed('operator', 3600_000, 7200_000)))).toMatch(
      /^(unauthorized|host-down)/,
    );
    expect(await state(client(await signed('root', -1000, 3600_000)))).toMatch(
      /^unauthorized: .*no SnowFlock role/,
    );
    const peer = client(await signed('operator', -1000, 3000));
    expect(await state(peer)).toBe('ok');
    await sleep(3500);
    expect(await state(peer)).toMatch(/^unauthorized: the certificate of 'x' has expired/);
  });

  it('that is revoked gets nowhere: open connections are cut, new ones refused, hosts are told, restarts remember', async () => {
    const h1 = await enrolled('h1');
    const h2 = await enrolled('h2');
    const peer = client(h1);
    expect(await state(peer)).toBe('ok');
    // Idle, kept alive; and one that waits for something.
    const socket = tls.connect({ host: '127.0.0.1', port, ...h1, servername: 'master' });
    socket.on('error', () => undefined);
    await once(socket, 'secureConnect');
    const cut = once(socket, 'close');
    const [gone] = await revoke('h1');
    expect(gone).toMatchObject({ name: 'h1', role: 'host' });
    await cut;
    expect(await state(peer)).toMatch(/^host-down/);
    expect(await state(client(h1))).toMatch(/^(host-down|unauthorized)/);
    expect(await outcome(revoke('h1'))).toMatch(/^bad-request: no valid certificate/);

    const report = { address: '127.0.0.1', sfldPort: 1, accel: 'tcg' };
    const reply = await ask(client(h2), 'PUT /v1/hosts/h2', HostReportReply, report);
    expect(reply.revoked).toEqual([gone?.serial]);
    const list = await ask(client('unix'), 'GET /v1/certificates', z.array(CertificateInfo));
    expect(list.filter(({ revokedAt }) => revokedAt !== null).map(({ name }) => name)).toEqual(['h1']);

    stop.abort();
    await running;
    await startSfmd();
    expect(await state(client(h1))).toMatch(/^(host-down|unauthorized)/);
    expect(await state(client(h2))).toBe('ok');
  });

  it('is renewed by who shows it, with the same name, role and addresses', async () => {
    const before = await enrolled('h1');
    const issued = await renew({ master: { address: '127.0.0.1', port }, files: filesOf('h1') });
    expect(issued.subject).toBe('O=SnowFlock\nOU=host\nCN=h1');
    expect(issued.subjectAltName).toBe(new X509Certificate(before.cert).subjectAltName);
    expect(identityOf('h1').key).not.toEqual(before.key);
    expect(await state(client(identityOf('h1')))).toBe('ok');
    expect(
      await outcome(ask(client('unix'), 'POST /v1/certificates/renew', z.unknown(), { csr: '' })),
    ).toMatch(/^bad-request/);
    // A host issues nothing and revokes nobody.
    for (const [path, body] of [
      ['tokens', { host: 'h2', validMinutes: 1 }],
      ['certificates', { name: 'me', role: 'operator', csr: '', days: 1 }],
      ['certificates/revoke', { name: 'h2' }],
    ] as const)
      expect(await outcome(ask(client(before), `POST /v1/${path}`, z.unknown(), body))).toMatch(
        /^unauthorized: .* is for operator; 'h1' has the role host/,
      );
  });

  it('of sfmd is renewed by itself before it expires; connections that are open go on', async () => {
    stop.abort();
    await running;
    const issued = await signed('master', -20_000, 9000, ['master', '127.0.0.1']);
    await writeIdentity(identityFiles(join(dir, 'tls'), 'sfmd'), {
      ...{ ca: issued.ca.toString(), cert: issued.cert.toString(), key: issued.key.toString() },
    });
    await startSfmd();
    const h1 = await enrolled('h1');
    const socket = tls.connect({ host: '127.0.0.1', port, ...h1, servername: 'master' });
    await once(socket, 'secureConnect');
    const serialNow = async (): Promise<string> => {
      const look = tls.connect({ host: '127.0.0.1', port, ...h1, servername: 'master' });
      await once(look, 'secureConnect');
      const { serialNumber } = look.getPeerCertificate();
      look.destroy();
      return serialNumber;
    };
    await expect.poll(serialNow).not.toBe(new X509Certificate(issued.cert).serialNumber);
    const renewed = new X509Certificate(readFileSync(join(dir, 'tls/sfmd.crt')));
    expect(await serialNow()).toBe(renewed.serialNumber);
    expect(renewed.subject).toBe('O=SnowFlock\nOU=master\nCN=x');
    expect(renewed.subjectAltName).toBe('DNS:master, IP Address:127.0.0.1');
    socket.write('GET /v1/state HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n');
    expect(String((await once(socket, 'data'))[0])).toMatch(/^HTTP\/1.1 200/);
    expect(lines.join('')).toContain('a new certificate is in use');
    expect(lines.join('')).not.toContain('PRIVATE KEY');
  });

  it('of a daemon that is revoked is refused by those who call it, at once', async () => {
    const h2 = await enrolled('h2');
    const file = new RevokedFile(join(dir, 'revoked.json'));
    const caller = client({ ...h2, isRevoked: file.certificates.has });
    file.certificates.onChange(() => caller.dropRevoked());
    expect(await state(caller)).toBe('ok');
    const { serialNumber } = new X509Certificate(readFileSync(join(dir, 'tls/sfmd.crt')));
    await file.replace([serialNumber]);
    expect(await state(caller)).toMatch(/^unauthorized: .*revoked/);
    expect(new RevokedFile(join(dir, 'revoked.json')).certificates.has(serialNumber)).toBe(true);
    await file.replace([]);
    expect(await state(caller)).toBe('ok');
  });
});
