import { existsSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, it } from 'vitest';
import { ControlClient, SystemState } from '@snowflock/protocol';
import { commandLineOf, daemonUnderTest, type DaemonUnderTest } from './daemon-process.ts';
import { createTestCa, type TestCa } from './sfmd-fixture.ts';

let ca: TestCa;
let sfmd: DaemonUnderTest;

beforeEach(() => {
  ca = createTestCa();
  sfmd = daemonUnderTest({ name: 'sfmd', tls: ca.issue('master') });
  writeConfig('');
});
afterEach(async () => {
  await sfmd.command('stop');
  ca[Symbol.dispose]();
  sfmd[Symbol.dispose]();
});

function writeConfig(more: string): void {
  sfmd.writeConfig(`cluster_hosts = [{'host': 'host1', 'cpus': 2, 'RAM': 1 << 30}]
address = '127.0.0.1'
master_listen_port = ${40000 + (process.pid % 20000)}
${more}`);
}

it('starts, tells its status, refuses to start twice, and stops', { timeout: 60_000 }, async () => {
  expect(await sfmd.command('status')).toMatchObject({ status: 3, stdout: 'sfmd is not running\n' });
  const started = await sfmd.command('start');
  expect(started).toMatchObject({ status: 0, stderr: '' });
  const [, pid = '', port = ''] = /pid (\d+), port (\d+)/.exec(started.stdout) ?? [];
  expect(pid).not.toBe('');
  expect(await sfmd.command('status')).toMatchObject({
    status: 0,
    stdout: `sfmd is running (pid ${pid}): 0 of 1 hosts up, 0 clusters\n`,
  });
  for (const command of ['start', 'run']) {
    const again = await sfmd.command(command);
    expect([again.status, again.stderr]).toEqual([
      1,
      `sfmd: sfmd is running already (pid ${pid}, run_dir ${join(sfmd.dir, 'run')})\n`,
    ]);
  }
  using client = new ControlClient({
    address: '127.0.0.1',
    port: Number(port),
    tls: ca.issue('host1'),
    host: 'master',
  });
  await client.request({ method: 'GET', path: '/v1/state', reply: SystemState, timeoutMs: 5000 });
  expect(await sfmd.command('stop')).toMatchObject({ status: 0, stdout: 'sfmd has stopped\n' });
  expect(commandLineOf(pid)).toBe('');
  expect(existsSync(join(sfmd.dir, 'run/sfmd.pid'))).toBe(false);
  expect(readFileSync(join(sfmd.dir, 'state/sfmd.log'), 'utf8')).toContain('"msg":"ready"');
  expect(await sfmd.command('stop')).toMatchObject({ status: 0, stdout: 'sfmd is not running\n' });
});

it(
  'says what is wrong with its configuration, also when started in the background',
  { timeout: 60_000 },
  async () => {
    writeConfig('network_mod = "unicast"');
    expect(await sfmd.command('run')).toMatchObject({
      status: 1,
      stderr: `sfmd: ${sfmd.config}:9:1: unknown setting 'network_mod'; did you mean 'network_mode'?\n`,
    });
    writeConfig('network_whitelist = ["a b"]');
    expect((await sfmd.command('start')).stderr).toContain('network_whitelist[0]: must be an address');
    writeConfig('');
    rmSync(join(sfmd.dir, 'host.key'));
    const started = await sfmd.command('start');
    expect([started.status, started.stderr]).toEqual([
      1,
      expect.stringContaining('before it was ready; see'),
    ]);
    expect(readFileSync(join(sfmd.dir, 'state/sfmd.log'), 'utf8')).toContain('host.key (tls_key): ENOENT');
    expect((await sfmd.command('restart')).status).toBe(2);
  },
);
