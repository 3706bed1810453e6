import { execFile } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, it } from 'vitest';
import { ControlClient, SystemState } from '@snowflock/protocol';
import { createTestCa, type TestCa } from './sfmd-fixture.ts';

const MAIN = join(import.meta.dirname, '../src/sfmd/main.ts');
let ca: TestCa;
let dir: string;
let config: string;

beforeEach(() => {
  ca = createTestCa();
  const { ca: caPem, cert, key } = ca.issue('master');
  dir = mkdtempSync(join(tmpdir(), 'snowflock-sfmd-'));
  config = join(dir, 'sfmd.cfg');
  writeFileSync(join(dir, 'ca.crt'), caPem);
  writeFileSync(join(dir, 'host.crt'), cert);
  writeFileSync(join(dir, 'host.key'), key);
  writeConfig('');
});
afterEach(async () => {
  await sfmd('stop');
  ca[Symbol.dispose]();
  rmSync(dir, { recursive: true });
});

function writeConfig(more: string): void {
  writeFileSync(
    config,
    `cluster_hosts = [{'host': 'host1', 'cpus': 2, 'RAM': 1 << 30}]
run_dir = 'run'
state_dir = 'state'
tls_ca = 'ca.crt'
tls_cert = 'host.crt'
tls_key = 'host.key'
address = '127.0.0.1'
master_listen_port = ${40000 + (process.pid % 20000)}
${more}`,
  );
}

function sfmd(...args: string[]): Promise<{ status: number | string; stdout: string; stderr: string }> {
  return new Promise((resolve) => {
    execFile(
      process.execPath,
      [MAIN, ...args, '--config', config],
      { timeout: 30_000 },
      (error, stdout, stderr) => {
        resolve({ status: error ? (error.code ?? String(error.signal)) : 0, stdout, stderr });
      },
    );
  });
}

/** Empty when it is gone, also while nobody has reaped it. */
function commandOf(pid: string): string {
  return existsSync(`/proc/${pid}/cmdline`) ? readFileSync(`/proc/${pid}/cmdline`, 'utf8') : '';
}

it('starts, tells its status, refuses to start twice, and stops', { timeout: 60_000 }, async () => {
  expect(await sfmd('status')).toMatchObject({ status: 3, stdout: 'sfmd is not running\n' });
  const started = await sfmd('start');
  expect(started).toMatchObject({ status: 0, stderr: '' });
  const pid = /pid (\d+), port (\d+)/.exec(started.stdout);
  expect(pid).not.toBeNull();
  expect(await sfmd('status')).toMatchObject({
    status: 0,
    stdout: expect.stringContaining('0 of 1 hosts up, 0 clusters') as string,
  });
  const again = await sfmd('start');
  expect([again.status, again.stderr]).toEqual([
    1,
    `sfmd: sfmd is running already (pid ${pid?.[1] ?? ''})\n`,
  ]);
  using client = new ControlClient({
    address: '127.0.0.1',
    port: Number(pid?.[2]),
    tls: ca.issue('host1'),
    host: 'master',
  });
  await client.request({ method: 'GET', path: '/v1/state', reply: SystemState, timeoutMs: 5000 });
  expect(await sfmd('stop')).toMatchObject({ status: 0, stdout: 'sfmd has stopped\n' });
  expect(commandOf(pid?.[1] ?? '')).toBe('');
  expect(existsSync(join(dir, 'run/sfmd.pid'))).toBe(false);
  expect(readFileSync(join(dir, 'state/sfmd.log'), 'utf8')).toContain('"msg":"ready"');
  expect(await sfmd('stop')).toMatchObject({ status: 0, stdout: 'sfmd is not running\n' });
});

it(
  'says what is wrong with its configuration, also when started in the background',
  { timeout: 60_000 },
  async () => {
    writeConfig('network_mod = "unicast"');
    expect(await sfmd('run')).toMatchObject({
      status: 1,
      stderr: `sfmd: ${config}:9:1: unknown setting 'network_mod'; did you mean 'network_mode'?\n`,
    });
    writeConfig(
      "tls_key = 'none.key'".replace('tls_key', 'network_whitelist').replace("'none.key'", '["a b"]'),
    );
    expect((await sfmd('start')).stderr).toContain('network_whitelist[0]: must be an address');
    writeConfig('');
    rmSync(join(dir, 'host.key'));
    const started = await sfmd('start');
    expect([started.status, started.stderr]).toEqual([
      1,
      expect.stringContaining('before it was ready; see'),
    ]);
    expect(readFileSync(join(dir, 'state/sfmd.log'), 'utf8')).toContain('host.key (tls_key): ENOENT');
    expect((await sfmd('restart')).status).toBe(2);
  },
);
