import { execFileSync, spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { requireVm } from '../../../tests/require-vm.ts';
import { OWNER_VARIABLE } from '../src/sfld/sweep.ts';
import { commandLineOf, daemonUnderTest, type DaemonUnderTest } from './daemon-process.ts';
import { createTestCa, type TestCa } from './sfmd-fixture.ts';

// In a network namespace of its own: a starting sfld removes what it takes for leftovers of an earlier one.
const NETNS = `sf-test-${process.pid}`;
const ip = (...args: string[]): void => void execFileSync('ip', args, { stdio: 'pipe' });

let ca: TestCa;
let sfld: DaemonUnderTest;

beforeEach(() => {
  ip('netns', 'add', NETNS);
  ip('-n', NETNS, 'link', 'set', 'lo', 'up');
  ca = createTestCa();
  sfld = daemonUnderTest({
    name: 'sfld',
    tls: ca.issue('host1'),
    prefix: ['ip', 'netns', 'exec', NETNS],
  });
  sfld.writeConfig(`hostname = 'host1'
address = '127.0.0.1'
master_host = '127.0.0.1'
`);
});
afterEach(async () => {
  await sfld.command('stop');
  ip('netns', 'del', NETNS);
  ca[Symbol.dispose]();
  sfld[Symbol.dispose]();
});

/** What an earlier sfld of this run_dir could have left. */
async function orphan(): Promise<ChildProcess> {
  const env = { ...process.env, [OWNER_VARIABLE]: join(sfld.dir, 'run') };
  const child = spawn('sleep', ['600'], { stdio: 'ignore', env });
  await once(child, 'spawn');
  return child;
}

function processesOf(runDir: string): string[] {
  const mark = `${OWNER_VARIABLE}=${runDir}`;
  return readdirSync('/proc')
    .filter((pid) => /^\d+$/.test(pid))
    .filter((pid) => {
      try {
        return readFileSync(`/proc/${pid}/environ`, 'latin1').includes(mark);
      } catch {
        return false; // just gone
      }
    });
}

describe.skipIf(!requireVm(['root', 'ip', 'qemu']))('sfld as a service', () => {
  it('starts without sfmd, sweeps, says how it does, refuses to start twice, and stops', async () => {
    expect(await sfld.command('status')).toMatchObject({ status: 3, stdout: 'sfld is not running\n' });
    const left = await orphan();
    const swept = once(left, 'exit');
    const started = await sfld.command('start');
    expect(started).toMatchObject({ status: 0, stderr: '' });
    expect(await swept).toEqual([null, 'SIGKILL']);
    const [, pid = '', port = ''] = /pid (\d+), port (\d+)/.exec(started.stdout) ?? [];
    expect(port).toBe(String(0xc01f));
    const status = `sfld is running (pid ${pid}): 0 VMs, sfmd unreachable\n`;
    expect(await sfld.command('status')).toMatchObject({ status: 0, stdout: status });

    const other = await orphan();
    for (const command of ['start', 'run']) {
      const again = await sfld.command(command);
      expect([again.status, again.stderr]).toEqual([
        1,
        `sfld: sfld is running already (pid ${pid}, run_dir ${join(sfld.dir, 'run')})\n`,
      ]);
    }
    expect(other.exitCode ?? other.signalCode).toBe(null);
    other.kill('SIGKILL');
    await once(other, 'exit');

    expect(await sfld.command('stop')).toMatchObject({ status: 0, stdout: 'sfld has stopped\n' });
    expect(commandLineOf(pid)).toBe('');
    expect(readdirSync(join(sfld.dir, 'run'))).toEqual([]);
    expect(readdirSync(join(sfld.dir, 'state'))).toEqual(['results', 'sfld-journal', 'sfld.log']);
    expect(readdirSync(join(sfld.dir, 'state/results'))).toEqual([]);
    expect(readdirSync(join(sfld.dir, 'state/sfld-journal'))).toEqual(['boot']);
    expect(processesOf(join(sfld.dir, 'run'))).toEqual([]);
    expect(readFileSync('/proc/self/mountinfo', 'utf8')).not.toContain(sfld.dir);
    expect(await sfld.command('stop')).toMatchObject({ status: 0, stdout: 'sfld is not running\n' });
  });

  it('does not end who starts it, and says why it cannot start', async () => {
    process.env[OWNER_VARIABLE] = join(sfld.dir, 'run');
    try {
      expect(await sfld.command('start')).toMatchObject({ status: 0 });
      expect(await sfld.command('stop')).toMatchObject({ status: 0 });
    } finally {
      delete process.env[OWNER_VARIABLE];
    }
    sfld.writeConfig(`hostname = 'host1'\naddress = '192.0.2.1'\nmaster_host = '127.0.0.1'\n`);
    const started = await sfld.command('start');
    expect([started.status, started.stderr]).toEqual([1, expect.stringContaining('sfld ended with 1')]);
    expect(readFileSync(join(sfld.dir, 'state/sfld.log'), 'utf8')).toContain('cannot listen on 192.0.2.1');
    expect(existsSync(join(sfld.dir, 'run/sfld.pid'))).toBe(false);
  });
});
