// Enrolment, revocation and start-up on a lab, as an administrator does them: with the commands, over the real network.

import { readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { X509Certificate } from 'node:crypto';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { identityFiles, newKey, newRequest, signCertificate, writeIdentity } from '@snowflock/authority';
import { runCommand } from '@snowflock/network';
import { Lab } from '@snowflock/lab';
import { NoReply, SeedReply } from '@snowflock/protocol';
import { requireVm } from './require-vm.ts';
import { Guest } from './support/guest.ts';

const BIN = join(import.meta.dirname, '../bin');
const COMMAND_TIMEOUT_MS = 90_000;

describe.skipIf(!requireVm(['root', 'ip', 'nft', 'qemu']))('the certificates of a system', () => {
  let lab: Lab;
  const secrets: string[] = [];

  beforeAll(async () => {
    lab = await Lab.up({ name: `sec${process.pid}`, hosts: 2 });
  });
  afterAll(async () => {
    await lab.down();
    expect(await lab.leftovers()).toEqual([]);
  });

  const master = (...args: string[]) =>
    lab.exec(1, [join(BIN, 'snowflock'), ...args, '--socket', join(lab.dir, 'host-1/master-run/sfmd.sock')], {
      timeoutMs: COMMAND_TIMEOUT_MS,
    });
  const up = async (): Promise<string[]> =>
    (await lab.state()).hosts.filter((host) => host.up).map(({ host }) => host);
  const restart = async (k: number): Promise<void> => {
    lab.signalDaemon(k, 'sfld', 'SIGTERM');
    await expect.poll(() => lab.daemonPid(k, 'sfld'), { timeout: 30_000 }).toBeUndefined();
    await lab.startDaemon(k, 'sfld');
  };

  it('let only the host of the master VM launch its clones, and only theirs read its memory', async () => {
    const client = lab.client(1);
    const seeded = await client.request({
      method: 'POST',
      path: '/v1/master/clusters',
      body: { diskImage: 'micro', vcpus: 1, memoryMib: 96 },
      reply: SeedReply,
      timeoutMs: COMMAND_TIMEOUT_MS,
    });
    const guest = new Guest(() => client, seeded);
    const ticket = /^Ticket is (\S+)$/m.exec(await guest.run(['sfdotix', '2']))?.[1] ?? '';
    const parent = seeded.host === 'host1' ? 1 : 2;
    // The parent's own host and the other one each try the clones on the other one.
    const asHost = async (
      from: number,
      to: number,
      asked: { method: string; path: string },
    ): Promise<string> => {
      const tls = join(lab.dir, `host-${from}/tls`);
      const script = `const { readFileSync: read } = require('node:fs');
        const [ca, cert, key] = ['ca.crt', 'host.crt', 'host.key'].map((name) => read('${tls}/' + name));
        const headers = { 'content-type': 'application/octet-stream' };
        const to = { host: 'host${to}', port: 49183, ...${JSON.stringify(asked)} };
        require('node:https').request({ ...to, ca, cert, key, headers, timeout: 20000 }, (reply) => reply.pipe(process.stdout))
          .on('error', (error) => console.log(error.message)).end(to.method === 'POST' ? 'x' : undefined);`;
      return (await lab.exec(from, [process.execPath, '-e', script])).stdout;
    };
    const launch = (from: number, to: number): Promise<string> =>
      asHost(from, to, { method: 'POST', path: `/v1/tickets/${ticket}/launch` });
    const other = 3 - parent;
    await expect
      .poll(() => launch(other, other), { timeout: 30_000, interval: 500 })
      .toContain(`launched by host 'host${parent}', not by 'host${other}'`);
    // It may, and is told that this is no descriptor.
    expect(await launch(parent, other)).toContain('bad-request');

    // The key to the pages of a fork is for the hosts of its clones.
    const single = /^Ticket is (\S+)$/m.exec(await guest.run(['sfdotix', '1']))?.[1] ?? '';
    const placed = (await lab.state()).clusters.flatMap(({ vms }) => vms).find((vm) => vm.ticket === single);
    const target = placed?.host === 'host1' ? 1 : 2;
    const pages = (from: number): Promise<string> =>
      asHost(from, parent, { method: 'GET', path: `/v1/sources/${single}/pages` });
    await expect.poll(() => pages(target), { timeout: 30_000, interval: 500 }).toContain('keyHex');
    const refused = await pages(3 - target);
    expect(refused).toContain('unauthorized');
    expect(refused).not.toContain('keyHex');
    await client.request({
      method: 'DELETE',
      path: `/v1/master/clusters/${seeded.clusterid}?force=1`,
      reply: NoReply,
      timeoutMs: COMMAND_TIMEOUT_MS,
    });
  });

  it('are revoked on every host, and a host comes back with a new one', async () => {
    expect(await up()).toEqual(['host1', 'host2']);
    const revoked = await master('revoke', 'host2');
    expect([revoked.status, revoked.stdout]).toEqual([
      0,
      expect.stringMatching(/^revoked: host2, host, [0-9A-F]+\n$/),
    ]);
    await expect.poll(up, { timeout: 30_000 }).toEqual(['host1']);
    // Its certificate opens no other sfld either.
    const tls = join(lab.dir, 'host-2/tls');
    const curl = (): ReturnType<typeof lab.exec> =>
      lab.exec(2, [
        'sh',
        '-c',
        `printf 'GET /v1/state HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n' |
        timeout 10 openssl s_client -quiet -connect host1:49183 -CAfile ${tls}/ca.crt -cert ${tls}/host.crt -key ${tls}/host.key -verify_return_error`,
      ]);
    await expect.poll(async () => (await curl()).stdout, { timeout: 20_000 }).not.toContain('HTTP/1.1');

    const issued = await master('enroll', '--issue', 'host2', '--also', '10.231.0.2', '--minutes', '5');
    expect(issued.stderr).toContain('snowflock enroll --master MASTER --token TOKEN');
    const token = issued.stdout.trim();
    secrets.push(token);
    const enroll = (...more: string[]) =>
      lab.exec(2, [join(BIN, 'snowflock'), 'enroll', '--config', join(lab.dir, 'host-2/sfld.cfg'), ...more], {
        timeoutMs: COMMAND_TIMEOUT_MS,
      });
    const wrong = await enroll('--token', token, '--hostname', 'host1');
    expect([wrong.status, wrong.stderr]).toEqual([1, expect.stringContaining("not valid for host 'host1'")]);
    const done = await enroll('--token', token);
    expect([done.status, done.stderr]).toEqual([0, '']);
    expect(done.stdout).toContain('O=SnowFlock, OU=host, CN=host2');
    expect(statSync(join(tls, 'host.key')).mode & 0o777).toBe(0o600);
    expect((await enroll('--token', token)).status).toBe(1);
    await restart(2);
    await expect.poll(up, { timeout: 30_000 }).toEqual(['host1', 'host2']);
    expect(await curl()).toMatchObject({ stdout: expect.stringContaining('HTTP/1.1 200') as string });

    const renewed = await enroll('--renew');
    expect([renewed.status, renewed.stderr]).toEqual([0, '']);
    const list = await master('cert', 'list');
    expect(list.stdout.split('\n').filter((line) => line.startsWith('host2'))).toHaveLength(3);
    expect(list.stdout).toMatch(/host2 +host .* revoked/);
  });

  it('are renewed by a host before they expire, and it goes on', async () => {
    const files = identityFiles(join(lab.dir, 'host-2/tls'), 'host');
    const key = newKey();
    const authority = join(lab.dir, 'authority');
    const cert = await signCertificate({
      authority: { certFile: join(authority, 'ca.crt'), keyFile: join(authority, 'ca.key') },
      csr: await newRequest(key),
      subject: { role: 'host', name: 'host2', altNames: ['host2', lab.hosts[1]?.address ?? ''] },
      // Its time to be renewed is from 5 s from now on.
      validity: { notBefore: new Date(Date.now() - 35_000), notAfter: new Date(Date.now() + 25_000) },
    });
    await writeIdentity(files, { ca: readFileSync(files.ca, 'utf8'), cert, key });
    const expiresMs = Date.parse(new X509Certificate(cert).validTo);
    await restart(2);
    const pid = lab.daemonPid(2, 'sfld');
    await expect.poll(() => readFileSync(files.cert, 'utf8'), { timeout: 20_000 }).not.toBe(cert);
    await sleep(Math.max(0, expiresMs + 2500 - Date.now())); // past its end, and a report of the host's
    expect(await up()).toEqual(['host1', 'host2']);
    expect(lab.daemonPid(2, 'sfld')).toBe(pid);
    const shown = await lab.exec(1, [
      'sh',
      '-c',
      `openssl s_client -connect host2:49183 -CAfile ${files.ca} </dev/null 2>/dev/null | openssl x509 -noout -serial`,
    ]);
    const { serialNumber } = new X509Certificate(readFileSync(files.cert));
    expect(shown.stdout.trim()).toBe(`serial=${serialNumber}`);
  });

  it('snowflock-startup starts what does not run, and says which host is not up', async () => {
    lab.signalDaemon(2, 'sfld', 'SIGKILL');
    await expect.poll(() => lab.daemonPid(2, 'sfld')).toBeUndefined();
    const startup = (...args: string[]) =>
      runCommand([join(BIN, 'snowflock-startup'), ...args], { timeoutMs: COMMAND_TIMEOUT_MS });
    const labbed = await startup('--lab', lab.name);
    expect([labbed.status, labbed.stderr]).toEqual([0, '']);
    expect(labbed.stdout).toMatch(/host1 +up[^]*host2 +up/);
    // As on a rack, with another way than ssh to get to a host; one host is out of reach.
    const via = join(lab.dir, 'via');
    writeFileSync(via, `[ "$1" = host2 ] && { echo 'no route to host2' >&2; exit 255; }\nshift\nexec "$@"\n`);
    // Started by that command, so this object does not know it.
    process.kill(Number(readFileSync(join(lab.dir, 'host-2/run/sfld.pid'), 'utf8')), 'SIGKILL');
    await expect.poll(up, { timeout: 20_000 }).toEqual(['host1']);
    const config = join(lab.dir, 'host-1/sfmd.cfg');
    const remote = `${join(BIN, 'sfld')} start --config ${join(lab.dir, 'host-1/sfld.cfg')}`;
    const racked = await startup(
      '--config',
      config,
      '--via',
      `sh ${via} {host}`,
      '--remote',
      remote,
      '--wait',
      '3',
    );
    expect(racked.status).toBe(1);
    expect(racked.stdout).toMatch(/host1 +up *\n[^]*host2 +DOWN +.*no route to host2/);
  });

  it('no key and no token is in any log, or in what --check prints', async () => {
    for (const file of [
      'authority/ca.key',
      'host-1/tls/host.key',
      'host-1/tls/sfmd.key',
      'host-2/tls/host.key',
    ])
      secrets.push(readFileSync(join(lab.dir, file), 'utf8').split('\n')[1] ?? '');
    expect(secrets.every((secret) => secret.length > 40)).toBe(true);
    const logs = [1, 2].flatMap((k) =>
      readdirSync(join(lab.dir, `host-${k}`), { recursive: true, encoding: 'utf8' })
        .filter((name) => name.endsWith('.log'))
        .map((name) => readFileSync(join(lab.dir, `host-${k}`, name), 'utf8')),
    );
    expect(logs.length).toBeGreaterThanOrEqual(3);
    const checks = await Promise.all(
      (['sfmd', 'sfld'] as const).map((daemon) =>
        runCommand([join(BIN, daemon), 'run', '--check', '--config', join(lab.dir, `host-1/${daemon}.cfg`)]),
      ),
    );
    for (const { status } of checks) expect(status).toBe(0);
    for (const text of [...logs, ...checks.map(({ stdout, stderr }) => stdout + stderr)])
      for (const secret of [...secrets, 'PRIVATE KEY']) expect(text).not.toContain(secret);
  });
});
