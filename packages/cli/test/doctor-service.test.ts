import { execFileSync } from 'node:child_process';
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { checkCertificate, checkService, reachResults } from '../src/commands/doctor-service.ts';
import { startFakeSfld } from '../../sdk/test/fake-sfld.ts';

let dir: string;
const openssl = (...args: string[]): void =>
  void execFileSync('openssl', args, { cwd: dir, stdio: 'pipe', timeout: 20_000 });
const KEY = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes'];
const paths = (cert = 'host') => ({
  tlsCa: join(dir, 'ca.crt'),
  tlsCert: join(dir, `${cert}.crt`),
  tlsKey: join(dir, `${cert}.key`),
});
const DAY_MS = 86_400_000;

beforeAll(() => {
  dir = mkdtempSync(join(tmpdir(), 'snowflock-doctor-'));
  for (const ca of ['ca', 'other'])
    openssl(
      'req',
      '-x509',
      ...KEY,
      '-days',
      '90',
      '-subj',
      `/CN=${ca}`,
      '-keyout',
      `${ca}.key`,
      '-out',
      `${ca}.crt`,
    );
  writeFileSync(join(dir, 'ext'), 'subjectAltName=DNS:host7,IP:10.0.0.7\n');
  for (const [name, ca] of [
    ['host', 'ca'],
    ['stranger', 'other'],
  ] as const) {
    openssl('req', ...KEY, '-subj', `/CN=${name}`, '-keyout', `${name}.key`, '-out', `${name}.csr`);
    openssl(
      'x509',
      '-req',
      '-in',
      `${name}.csr`,
      '-CA',
      `${ca}.crt`,
      '-CAkey',
      `${ca}.key`,
      '-CAcreateserial',
      '-days',
      '60',
      '-extfile',
      'ext',
      '-out',
      `${name}.crt`,
    );
    chmodSync(join(dir, `${name}.key`), 0o600);
  }
});
afterAll(() => rmSync(dir, { recursive: true }));

describe('a certificate', () => {
  const check = (host: string | null, days = 0, cert = 'host') =>
    checkCertificate(paths(cert), host, Date.now() + days * DAY_MS);

  it('is well when it is for this host, of the cluster, and in its time', () => {
    expect(check('host7')).toMatchObject({
      status: 'ok',
      found: expect.stringMatching(/host7.*, 59 days left/) as string,
    });
    expect(check('10.0.0.7').status).toBe('ok');
    expect(check(null).status).toBe('ok');
  });

  it('is not, and the doctor says what to do', () => {
    expect(check('host7', 45).status).toBe('ok'); // it may be renewed until now
    expect(check('host7', 55)).toMatchObject({
      status: 'warn',
      advice: expect.stringContaining('enroll --renew') as string,
    });
    expect(check('host7', 61).found).toContain('expired at');
    expect(check('host7', -1).found).toContain('is valid from');
    expect(check('host8').found).toContain("not for 'host8'");
    expect(check('host7', 0, 'stranger').found).toContain('was not issued by');
    expect(check('host7', 0, 'nobody')).toMatchObject({
      status: 'fail',
      found: expect.stringContaining('ENOENT') as string,
    });
    expect(
      checkCertificate({ ...paths(), tlsKey: join(dir, 'stranger.key') }, null, Date.now()).found,
    ).toContain('is not the key of');
    chmodSync(join(dir, 'host.key'), 0o640);
    expect(check('host7')).toMatchObject({
      status: 'fail',
      advice: expect.stringContaining('chmod 600') as string,
    });
    chmodSync(join(dir, 'host.key'), 0o600);
  });
});

describe('the service', () => {
  it('is checked where it is configured: a mistake in a file, a daemon that does not run', async () => {
    writeFileSync(join(dir, 'sfld.cfg'), 'hostname = 5\n');
    const results = await checkService({ configDir: dir, socket: join(dir, 'none.sock') });
    expect(results.map(({ name, status }) => [name, status])).toEqual([
      ['sfld.cfg', 'fail'],
      ['sfld', 'fail'],
    ]);
    expect(results[0]?.found).toContain('sfld.cfg');
    expect(await checkService({ configDir: join(dir, 'empty'), socket: join(dir, 'none.sock') })).toEqual([]);
  });

  it('names every pair of hosts that does not reach one another, and the port', async () => {
    await using fake = await startFakeSfld();
    const pair = { from: 'a', to: 'b', reason: null };
    fake.replies.set('GET /v1/reach?all=1', {
      status: 200,
      body: {
        pairs: [
          { ...pair, to: 'sfmd', part: 'sfmd', state: 'ok' },
          { ...pair, part: 'vxlan', state: 'failed', reason: 'no answer' },
          { ...pair, part: 'pages', state: 'untried', reason: 'VMs use it at this moment' },
        ],
        clocks: [{ host: 'b', aheadMs: -61_000 }],
      },
    });
    const results = await checkService({ configDir: join(dir, 'empty'), socket: fake.socketPath });
    expect(results.map(({ name, status }) => `${status} ${name}`)).toEqual([
      'ok hosts',
      'fail a → b vxlan',
      'warn clocks',
    ]);
    expect(results[0]?.found).toBe(
      '1 of 3 ways between hosts and daemons work, 1 could not be tried (VMs use it at this moment)',
    );
    expect(results[1]?.advice).toContain('UDP port 4789');
    expect(results[2]?.found).toBe('b 61 s behind');
    expect(reachResults({ pairs: [], clocks: [{ host: 'b', aheadMs: 3 }] }).at(-1)?.found).toContain('3 ms');
  });
});
