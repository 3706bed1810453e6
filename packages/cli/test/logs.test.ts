import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { appendFileSync, mkdirSync, mkdtempSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { runProgram, snowflockProgram } from '../src/index.ts';
import { parseAge } from '../src/commands/logs.ts';
import { formatLogEntry, parseLogLine } from '../src/logs/log-entry.ts';
import { findLogFiles } from '../src/logs/log-files.ts';
import { LogFollower } from '../src/logs/log-follower.ts';

const TICKET = 'd4d660b0-054e-4017-8393-ad04ff1c1ff7';
let dir: string;
let host: (k: number) => string;
const line = (second: number, fields: object): string =>
  `${JSON.stringify({ level: 'info', time: `2026-01-01T00:00:0${second}.000Z`, name: 'x', pid: 1, ...fields })}\n`;

beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'snowflock-logs-'));
  vi.stubEnv('SNOWFLOCK_LAB_DIR', dir);
  host = (k) => join(dir, 'lab-t', `host-${k}`);
  for (const k of [1, 2]) mkdirSync(join(host(k), 'run'), { recursive: true });
  writeFileSync(
    join(host(1), 'sfmd.log'),
    line(1, { msg: 'ready' }) + '{"ready":true,"port":5}\n' + line(5, { msg: 'host-up', host: 'host2' }),
  );
  writeFileSync(
    join(host(2), 'sfld.log'),
    line(2, { msg: 'VM started', clusterid: 0, vmid: 0 }) +
      line(4, { msg: 'clone runs', clusterid: 0, vmid: 1, ticket: TICKET }),
  );
  writeFileSync(
    join(host(1), 'run/memtap.log'),
    line(3, { msg: 'source lost', clusterid: 1, ticket: TICKET, level: 'error' }) +
      'Error: oops\n    at x.ts:1\n',
  );
});
afterEach(() => {
  vi.unstubAllEnvs();
  vi.restoreAllMocks();
  rmSync(dir, { recursive: true });
});

async function logs(...args: string[]): Promise<{ status: number; lines: string[]; error: string }> {
  let text = '';
  let error = '';
  vi.spyOn(process.stdout, 'write').mockImplementation((chunk) => ((text += String(chunk)), true));
  vi.spyOn(process.stderr, 'write').mockImplementation((chunk) => ((error += String(chunk)), true));
  const status = await runProgram(snowflockProgram(), ['logs', '--lab', 't', ...args]);
  return { status, lines: text.split('\n').filter(Boolean), error };
}

const messages = (lines: string[]): string[] => lines.map((each) => each.slice(24));

describe('snowflock logs', () => {
  it('merges all hosts in the order of time, with what belongs to a line behind it', async () => {
    const { lines } = await logs();
    expect(messages(lines)).toEqual([
      'host1    sfmd      INFO  ready',
      'host2    sfld      INFO  VM started clusterid=0 vmid=0',
      `host1    memtap    ERROR source lost clusterid=1 ticket=${TICKET}`,
      `host1    memtap    ERROR Error: oops clusterid=1 ticket=${TICKET}`,
      `host1    memtap    ERROR     at x.ts:1 clusterid=1 ticket=${TICKET}`,
      `host2    sfld      INFO  clone runs clusterid=0 vmid=1 ticket=${TICKET}`,
      'host1    sfmd      INFO  host-up host=host2',
    ]);
  });

  it('shows what concerns a cluster, a VM, a ticket, a host, a daemon', async () => {
    const count = async (...args: string[]): Promise<number> => (await logs(...args)).lines.length;
    expect(await count('--cluster', '0')).toBe(2);
    expect(await count('--vm', '0:1')).toBe(1);
    expect(await count('--ticket', TICKET.slice(0, 8))).toBe(4);
    expect(await count('--host', 'host2')).toBe(2);
    expect(await count('sfmd', 'memtap')).toBe(5);
    expect(await count('--since', '1d')).toBe(0);
    const { lines } = await logs('--json', '--vm', '0:1');
    expect(JSON.parse(lines[0] ?? '')).toMatchObject({ host: 'host2', msg: 'clone runs', vmid: 1 });
  });

  it('refuses what makes no sense', async () => {
    expect(await logs('--host', 'host9')).toMatchObject({
      status: 1,
      error: expect.stringContaining('host1, host2') as string,
    });
    for (const args of [['--vm', 'x'], ['--since', 'soon'], ['--ticket', 'Z'], ['qemu']])
      expect((await logs(...args)).status).toBe(2);
    expect([parseAge('90s'), parseAge('2h')]).toEqual([90_000, 7_200_000]);
    expect(() => findLogFiles({ names: [], configDir: dir, lab: 'none' })).toThrow("no lab 'none'");
  });

  it('finds the logs of the daemons that are configured on this host', () => {
    writeFileSync(
      join(dir, 'sfld.cfg'),
      "hostname = 'h7'\nmaster_host = 'h1'\nstate_dir = '/s'\nrun_dir = '/r'\n",
    );
    writeFileSync(
      join(dir, 'sfmd.cfg'),
      "cluster_hosts = [{'host': 'h7', 'cpus': 1, 'RAM': 1<<30}]\nstate_dir = '/m'\n",
    );
    const found = findLogFiles({ names: ['sfmd', 'memtap'], configDir: dir });
    expect(found).toEqual([
      { host: 'h7', name: 'memtap', path: '/r/memtap.log' },
      { host: 'h7', name: 'sfmd', path: '/m/sfmd.log' },
    ]);
  });

  it('follows: half lines, files that begin anew, files that appear', async () => {
    const path = join(dir, 'a.log');
    const follower = new LogFollower([{ host: 'h', name: 'sfld', path }]);
    const next = async (): Promise<string[]> => (await follower.read()).map(({ message }) => message);
    expect(await next()).toEqual([]);
    appendFileSync(path, line(1, { msg: 'one' }) + line(2, { msg: 'two' }).slice(0, 20));
    expect(await next()).toEqual(['one']);
    appendFileSync(path, line(2, { msg: 'two' }).slice(20));
    expect(await next()).toEqual(['two']);
    expect(await next()).toEqual([]);
    renameSync(path, `${path}.1`);
    writeFileSync(path, line(3, { msg: 'three' }));
    expect(await next()).toEqual(['three']);
    writeFileSync(path, '');
    expect(await next()).toEqual([]);
    appendFileSync(path, line(4, { msg: 'four' }));
    expect(await next()).toEqual(['four']);
  });

  it('--follow ends with status 0 on Ctrl-C', async () => {
    const bin = new URL('../../../bin/snowflock', import.meta.url).pathname;
    const child = spawn(bin, ['logs', '--lab', 't', '--follow'], { stdio: ['ignore', 'pipe', 'inherit'] });
    let text = '';
    child.stdout.on('data', (chunk: Buffer) => (text += chunk.toString()));
    await expect.poll(() => text, { timeout: 10_000 }).toContain('host-up');
    appendFileSync(join(host(2), 'sfld.log'), line(9, { msg: 'a new line' }));
    await expect.poll(() => text, { timeout: 10_000 }).toContain('a new line');
    const ended = once(child, 'exit');
    child.kill('SIGINT');
    expect(await ended).toEqual([0, null]);
  });
});

it('control characters of strangers do not reach the terminal', () => {
  const entry = parseLogLine(JSON.stringify({ msg: 'a\u001b[2Jb', reason: 'x\u0007\ny' }), {
    host: 'h',
    name: 'sfld',
    before: null,
  });
  if (!entry) throw new Error('no entry');
  const text = formatLogEntry(entry, { hosts: false });
  expect(text).not.toMatch(/[\u0000-\u001f]/);
  expect(text).toContain('a\\x1b[2Jb');
});
