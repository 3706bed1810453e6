// The lab itself, with stand-ins for the daemons: namespaces, certificates, roll-back, taking down.

import { spawn } from 'node:child_process';
import { X509Certificate } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { listLinks, runBatch, runTool } from '@snowflock/network';
import { requireVm } from '../../tests/require-vm.ts';
import { downLab, findLeftovers, Lab, labDir, labStatus, type LabProgress } from '../src/index.ts';
import { readRecord } from '../src/record.ts';

const RUN = requireVm(['root', 'tun', 'ip', 'nft']);
const FAKE = join(import.meta.dirname, 'fake-daemon.ts');
const mains = { sfmd: FAKE, sfld: FAKE };

describe.skipIf(!RUN)('Lab', () => {
  let parent = '';
  let number = 0;
  let name = '';
  const fresh = (): string => (name = `t${process.pid}x${++number}`);

  beforeAll(async () => {
    parent = await mkdtemp('/tmp/sflab-');
    process.env.SNOWFLOCK_LAB_DIR = parent;
  });
  afterEach(async () => {
    for (const key of Object.keys(process.env))
      if (key.startsWith('SNOWFLOCK_FAKE_')) delete process.env[key];
    await downLab(name);
    expect(await findLeftovers(name)).toEqual([]);
  });
  afterAll(async () => {
    delete process.env.SNOWFLOCK_LAB_DIR;
    await rm(parent, { recursive: true, force: true });
  });

  it('makes hosts that reach each other by name, each with its own hostname and mounts', async () => {
    const rootLinks = await listLinks();
    const events: LabProgress[] = [];
    const lab = await Lab.up({
      name: fresh(),
      hosts: 2,
      mains,
      onProgress: (event) => void events.push(event),
    });
    expect(events.filter(({ state }) => state === 'done').map(({ step }) => step)).toEqual([
      'network',
      'certificates',
      'sfmd',
      'sfld',
      'hosts',
    ]);
    expect((await lab.exec(2, ['hostname'])).stdout).toBe('host2\n');
    const ping = await lab.exec(1, ['busybox', 'ping', '-c', '1', '-W', '2', 'host2']);
    expect(ping).toMatchObject({ status: 0 });
    expect(await lab.exec(1, ['sh', '-c', 'cat; exit 7'], { input: 'in' })).toMatchObject({
      status: 7,
      stdout: 'in',
    });

    await lab.exec(1, ['mount', '-t', 'tmpfs', 'none', join(lab.hosts[0]?.dir ?? '', 'state')]);
    expect((await lab.exec(1, ['grep', '-c', 'state tmpfs', '/proc/mounts'])).stdout).toBe('1\n');
    expect(readFileSync('/proc/mounts', 'utf8')).not.toContain(parent);
    expect((await lab.exec(2, ['grep', '-c', 'state tmpfs', '/proc/mounts'])).status).toBe(1);

    expect((await lab.state()).hosts.map(({ host, up }) => [host, up])).toEqual([
      ['host1', true],
      ['host2', true],
    ]);
    expect(await labStatus(name)).toMatchObject({
      status: 'up',
      problem: null,
      hosts: [{ name: 'host1' }, { sfmd: null }],
    });
    expect((await Lab.find(name))?.hosts).toEqual(lab.hosts);
    expect(await listLinks()).toEqual(rootLinks);
    await lab.down();
    expect(await lab.leftovers()).toEqual([]);
    expect(await Lab.find(name)).toBeUndefined();
  });

  it('gives every host a certificate of the lab, and nobody else its key', async () => {
    await using lab = await Lab.up({ name: fresh(), hosts: 2, mains });
    const authority = new X509Certificate(readFileSync(join(lab.dir, 'authority/ca.crt')));
    for (const host of lab.hosts) {
      const certificate = new X509Certificate(readFileSync(join(host.dir, 'tls/host.crt')));
      expect(certificate.verify(authority.publicKey)).toBe(true);
      expect(certificate.checkHost(host.name)).toBe(host.name);
      expect(certificate.checkIP(host.address)).toBe(host.address);
      expect(certificate.publicKey.asymmetricKeyDetails?.namedCurve).toBe('prime256v1');
      expect(statSync(join(host.dir, 'tls/host.key')).mode & 0o777).toBe(0o600);
    }
    expect(statSync(join(lab.dir, 'authority/ca.key')).mode & 0o777).toBe(0o600);
  });

  it('cuts, heals, slows and harms links', async () => {
    await using lab = await Lab.up({ name: fresh(), hosts: 2, mains });
    const ping = async (count = 1): Promise<number> => {
      const argv = ['busybox', 'ping', '-A', '-c', String(count), '-W', '1', '10.231.0.2'];
      const { stdout } = await lab.exec(1, argv);
      return Number(/(\d+)% packet loss/.exec(stdout)?.[1] ?? 100);
    };
    expect(await ping()).toBe(0);
    await lab.cutHost(2);
    expect(await ping()).toBe(100);
    await lab.healHost(2);
    expect(await ping(2)).toBeLessThan(100);
    await lab.shapeLink(2, { dropPercent: 100, rateMbit: 10 });
    expect(await ping()).toBe(100);
    await lab.shapeLink(2, { rateMbit: 10 });
    expect(await ping()).toBe(0);
    const qdisc = (): Promise<string> =>
      runTool('tc', ['qdisc', 'show', 'dev', 'eth0'], { netns: `sf-${name}-2` });
    expect(await qdisc()).toMatch(/tbf .*rate 10Mbit/);
    await lab.shapeLink(2, {});
    expect(await qdisc()).not.toMatch(/tbf/);
    await expect(lab.shapeLink(2, { rateMbit: 0 })).rejects.toThrow(/above 0/);
    await expect(lab.cutHost(3)).rejects.toThrow(/hosts 1 to 2, not 3/);
  });

  it('refuses a second lab of the name and leaves the first untouched', async () => {
    const lab = await Lab.up({ name: fresh(), hosts: 1, mains });
    const pid = lab.daemonPid(1, 'sfld');
    await expect(Lab.up({ name, hosts: 2, mains })).rejects.toThrow(/is up already \(hosts: 1.*lab down/);
    expect(lab.daemonPid(1, 'sfld')).toBe(pid);
    expect((await labStatus(name)).status).toBe('up');
  });

  it('says what is wrong with a half-dead lab, and to take it down', async () => {
    const lab = await Lab.up({ name: fresh(), hosts: 2, mains });
    lab.signalDaemon(2, 'sfld', 'SIGKILL');
    while (lab.daemonPid(2, 'sfld') !== undefined) await sleep(10);
    expect(await labStatus(name)).toMatchObject({ status: 'broken', problem: 'sfld of host2 is dead' });
    await expect(Lab.up({ name, hosts: 2, mains })).rejects.toThrow(
      /sfld of host2 is dead; run 'snowflock lab down --name/,
    );
    await expect(Lab.find(name)).rejects.toThrow(/sfld of host2 is dead/);
    await lab.startDaemon(2, 'sfld');
    expect((await labStatus(name)).status).toBe('up');
  });

  it.each(['sfmd@host1', 'sfld@host2'])(
    'rolls back when %s does not start, and shows its log',
    async (which) => {
      process.env.SNOWFLOCK_FAKE_FAIL = which;
      const error = await Lab.up({ name: fresh(), hosts: 2, mains }).catch((reason: unknown) => reason);
      expect(String(error)).toMatch(/ended with exit status 3.*\n.*made of cheese/s);
      expect(await findLeftovers(name)).toEqual([]);
      expect(existsSync(labDir(name))).toBe(false);
    },
  );

  it('rolls back when it is interrupted', async () => {
    const abort = new AbortController();
    const onProgress = ({ step }: LabProgress): void => void (step === 'sfld' && abort.abort());
    const up = Lab.up({ name: fresh(), hosts: 2, mains, onProgress, signal: abort.signal });
    await expect(up).rejects.toThrow(/interrupted; nothing of it is left/);
    expect(await findLeftovers(name)).toEqual([]);
  });

  it('goes down after everything in it was killed, and with processes that ignore SIGTERM', async () => {
    process.env.SNOWFLOCK_FAKE_VM = '1';
    await Lab.up({ name: fresh(), hosts: 2, mains });
    const record = await readRecord(name);
    for (const { holderPid, daemons } of record?.hosts ?? [])
      for (const pid of [holderPid, ...Object.values(daemons)]) process.kill(pid, 'SIGKILL');
    await runBatch('ip', ['tuntap add dev sft0-0 mode tap'], { netns: `sf-${name}-1` });
    expect((await findLeftovers(name)).map(({ kind }) => kind)).toContain('device');
    expect(await downLab(name)).toMatchObject({ existed: true });
    expect(await downLab(name)).toEqual({ existed: false, notes: [] });

    process.env.SNOWFLOCK_FAKE_STUBBORN = '1';
    const stubborn = await Lab.up({ name: fresh(), hosts: 1, mains });
    await stubborn.down();
    expect(await stubborn.leftovers()).toEqual([]);
  });

  it('finds the processes of a lab whose namespaces have lost their names', async () => {
    process.env.SNOWFLOCK_FAKE_VM = '1';
    const lab = await Lab.up({ name: fresh(), hosts: 1, mains });
    await runBatch('ip', [`netns del sf-${name}-1`, `netns del sf-${name}-sw`]);
    expect((await lab.leftovers()).filter(({ kind }) => kind === 'process').length).toBeGreaterThanOrEqual(4);
    expect(await downLab(name)).toMatchObject({ existed: true });
    expect(await lab.leftovers()).toEqual([]);
  });

  it('goes down when its maker was killed half-way', async () => {
    fresh();
    const program = `
      const { Lab } = await import(${JSON.stringify(join(import.meta.dirname, '../src/index.ts'))});
      const mains = ${JSON.stringify(mains)};
      await Lab.up({ name: ${JSON.stringify(name)}, hosts: 2, mains, onProgress: ({ step }) => {
        if (step === 'sfld') process.kill(process.pid, 'SIGKILL');
      } });`;
    const maker = spawn(process.execPath, ['--input-type=module', '-e', program], { stdio: 'ignore' });
    await new Promise((resolve) => maker.once('exit', resolve));
    await expect(Lab.up({ name, hosts: 1, mains })).rejects.toThrow(
      /still being started, or its start was killed.*lab down/,
    );
    expect((await labStatus(name)).status).toBe('broken');
    expect(await downLab(name)).toMatchObject({ existed: true });
  });

  it('takes down stray namespaces and a folder without a record', async () => {
    fresh();
    await runBatch('ip', [`netns add sf-${name}-1`]);
    await expect(Lab.up({ name, hosts: 1, mains })).rejects.toThrow(/left of an earlier one/);
    expect(await downLab(name)).toMatchObject({ existed: true });
    mkdirSync(labDir(name));
    writeFileSync(join(labDir(name), 'lab.json'), '{ "half": ');
    await expect(Lab.up({ name, hosts: 1, mains })).rejects.toThrow(/record is missing/);
    expect(await downLab(name)).toMatchObject({ existed: true });
  });

  it('refuses what makes no sense', async () => {
    fresh();
    await expect(Lab.up({ name: 'No Good', hosts: 1 })).rejects.toThrow(/cannot be the name/);
    await expect(Lab.up({ name, hosts: 0 })).rejects.toThrow(/1 to 64 hosts, not 0/);
    await expect(Lab.up({ name, hosts: 1, cpus: 0 })).rejects.toThrow(/1 or more CPUs/);
  });
});
