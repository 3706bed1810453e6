// How a rack is started: snowflock-startup over real OpenSSH servers, one inside each host's namespaces.

import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { runChecked } from '@snowflock/network';
import { Lab } from '@snowflock/lab';
import { requireVm } from './require-vm.ts';
import { eventually, patient } from './support/deadline.ts';

const ROOT = join(import.meta.dirname, '..');
const BIN = join(ROOT, 'bin');
const COMMAND_TIMEOUT_MS = 60_000;
/** ssh gives up on a host after 3 s; --wait 4; and room for a busy machine. */
const BOUND_MS = 40_000;
const SSH_PORT = 2222;
const RUN_SSHD = '/run/sshd';
const SSHD_GONE_MS = 10_000;

describe.skipIf(!requireVm(['root', 'ip', 'nft', 'qemu', 'sshd']))('snowflock-startup over ssh', () => {
  let lab: Lab;
  let dir: string;
  let madeRunDirectory = false;
  const servers = new Set<number>();

  const host = (k: number) => {
    const found = lab.hosts[k - 1];
    if (!found) throw new Error(`no host ${k}`);
    return found;
  };
  const newKey = (file: string) => runChecked(['ssh-keygen', '-q', '-t', 'ed25519', '-N', '', '-f', file]);
  const pidFile = (k: number): string => join(dir, `sshd-${k}.pid`);
  const pidOf = (k: number): number => Number(readFileSync(join(host(k).dir, 'run/sfld.pid'), 'utf8'));

  /** An OpenSSH server in a host's namespaces, which lets in the one key. */
  async function startSshd(k: number, key: string): Promise<void> {
    const config = join(dir, `sshd-${k}.conf`);
    writeFileSync(
      config,
      `Port ${SSH_PORT}
ListenAddress ${host(k).address}
HostKey ${dir}/host-key
AuthorizedKeysFile ${key}.pub
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
StrictModes no
UsePAM no
PidFile ${pidFile(k)}
`,
    );
    const log = join(dir, `sshd-${k}.log`);
    // It goes into the background when it listens.
    const started = await lab.exec(k, ['/usr/sbin/sshd', '-E', log, '-f', config]);
    expect([started.status, started.stderr]).toEqual([0, '']);
    servers.add(k);
  }

  async function stopSshd(k: number): Promise<void> {
    if (!servers.delete(k)) return;
    const pid = Number(readFileSync(pidFile(k), 'utf8'));
    process.kill(pid, 'SIGTERM');
    await eventually(SSHD_GONE_MS, `sshd of host ${k} to end`, async () => {
      if (existsSync(`/proc/${pid}`)) throw new Error(`process ${pid} is there`);
    });
  }

  async function stopSfld(k: number): Promise<void> {
    process.kill(pidOf(k), 'SIGKILL');
    await expect
      .poll(async () => (await lab.state()).hosts.find((each) => each.host === host(k).name)?.up, {
        timeout: 30_000,
      })
      .toBe(false);
  }

  async function startup() {
    const began = performance.now();
    const ssh = ['ssh', '-F', join(dir, 'ssh.conf'), '-o', 'ConnectTimeout=3', '{host}'];
    const done = await lab.exec(
      1,
      [
        join(BIN, 'snowflock-startup'),
        ...['--config', join(host(1).dir, 'sfmd.cfg'), '--via', ssh.join(' ')],
        ...['--remote', `sh ${dir}/start-{host}`, '--wait', '4'],
      ],
      { timeoutMs: COMMAND_TIMEOUT_MS },
    );
    expect(performance.now() - began).toBeLessThan(patient(BOUND_MS));
    return done;
  }

  beforeAll(async () => {
    lab = await Lab.up({ name: `ssh${process.pid}`, hosts: 3 });
    dir = mkdtempSync(join(tmpdir(), 'sf-ssh-'));
    for (const key of ['host-key', 'good', 'bad']) await newKey(join(dir, key));
    writeFileSync(
      join(dir, 'ssh.conf'),
      `Host *
Port ${SSH_PORT}
User root
BatchMode yes
IdentityFile ${dir}/good
IdentitiesOnly yes
StrictHostKeyChecking no
UserKnownHostsFile /dev/null
LogLevel ERROR
`,
    );
    for (const { name, dir: home } of lab.hosts)
      writeFileSync(
        join(dir, `start-${name}`),
        `[ -z "$SSH_CONNECTION" ] && { echo 'not over ssh' >&2; exit 1; }
exec ${BIN}/sfld start --config ${home}/sfld.cfg\n`,
      );
    // As Debian's service makes it; it must be there, and is not where no server ever ran.
    madeRunDirectory = mkdirSync(RUN_SSHD, { recursive: true }) !== undefined;
    for (const k of [1, 2, 3]) await startSshd(k, join(dir, 'good'));
  });
  afterAll(async () => {
    for (const k of [...servers]) await stopSshd(k);
    if (madeRunDirectory) rmdirSync(RUN_SSHD);
    await lab.down();
    expect(await lab.leftovers()).toEqual([]);
    rmSync(dir, { recursive: true });
  });

  it('starts sfld on every host, and leaves alone what runs', async () => {
    await stopSfld(2);
    await stopSfld(3);
    const untouched = pidOf(1);
    const done = await startup();
    expect([done.status, done.stderr]).toEqual([0, '']);
    expect(done.stdout).toMatch(/host1 +up[^]*host2 +up[^]*host3 +up/);
    expect(pidOf(1)).toBe(untouched);
    expect((await lab.state()).hosts.every(({ up }) => up)).toBe(true);
  });

  it('says of each host what went wrong there, in bounded time', async () => {
    await stopSfld(2);
    await stopSfld(3);
    // Nobody answers at host2's address; at host3's somebody does who does not know the key.
    await lab.cutHost(2);
    await stopSshd(3);
    await startSshd(3, join(dir, 'bad'));
    const first = await startup();
    expect(first.status).toBe(1);
    expect(first.stdout).toMatch(/host1 +up *\n/);
    expect(first.stdout).toMatch(/host2 +DOWN +.*(timed out|No route to host)/);
    expect(first.stdout).toMatch(/host3 +DOWN +.*Permission denied \(publickey\)/);

    // No server at all; and one where sfld does not start.
    await lab.healHost(2);
    await stopSshd(2);
    await stopSshd(3);
    await startSshd(3, join(dir, 'good'));
    const config = join(host(3).dir, 'sfld.cfg');
    const right = readFileSync(config, 'utf8');
    writeFileSync(config, `${right}\naccel = 'abacus'\n`);
    const second = await startup();
    expect(second.status).toBe(1);
    expect(second.stdout).toMatch(/host2 +DOWN +.*Connection refused/);
    expect(second.stdout).toMatch(/host3 +DOWN +.*accel/);

    writeFileSync(config, right);
    await startSshd(2, join(dir, 'good'));
    const last = await startup();
    expect([last.status, last.stderr]).toEqual([0, '']);
  });
});
