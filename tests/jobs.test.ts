// The launcher of jobs, as it runs in clones, and sf-launch, which mpiexec calls: over the loopback, without VMs. And what jobs say that
// cannot begin.

import { execFile, spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, readFileSync, rmSync, symlinkSync } from 'node:fs';
import { connect, type Socket } from 'node:net';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { z } from 'zod';
import { haveTools } from '../guest/image/test/needs.ts';
import { eventually, within } from './support/deadline.ts';

const GUEST = join(import.meta.dirname, '../guest');
const JOBS = join(GUEST, 'jobs');
const WAIT_MS = 10_000;
const SERVE = `
import sys
from sfjobs.launcher import Launcher
from sfjobs.wire import Session
session = Session.listen({}, "127.0.0.1")
session.save(sys.argv[1])
Launcher(session).serve()
`;
const Saved = z.object({ secret: z.string(), ports: z.record(z.string(), z.number()) });
const ENVIRONMENT = {
  ...process.env,
  PYTHONDONTWRITEBYTECODE: '1',
  PYTHONPATH: `${JOBS}:${join(GUEST, 'python')}`,
};

interface Outcome {
  readonly status: number | null;
  readonly out: string;
  readonly err: string;
}

async function outcomeOf(child: ChildProcess, input = ''): Promise<Outcome> {
  let out = '';
  let err = '';
  child.stdout?.on('data', (chunk: Buffer) => (out += chunk.toString()));
  child.stderr?.on('data', (chunk: Buffer) => (err += chunk.toString()));
  child.stdin?.end(input);
  await within(WAIT_MS, 'the end of a program', once(child, 'close'));
  return { status: child.exitCode, out, err };
}

describe.skipIf(!haveTools('python3'))('the launcher of jobs', () => {
  let dir = '';
  let launcher: ChildProcess;
  let lifeline: Socket;

  const session = (): z.infer<typeof Saved> =>
    Saved.parse(JSON.parse(readFileSync(join(dir, 'session'), 'utf8')));

  /** A connection that has said this line; its first answer is '' when it is hung up on. */
  async function say(port: string, line: string): Promise<{ socket: Socket; answer: string }> {
    const socket = connect(session().ports[port] ?? 0, '127.0.0.1');
    socket.on('error', () => undefined);
    let answer = '';
    const answered = new Promise<void>((resolve) => {
      socket.once('data', (chunk) => {
        answer = chunk.toString();
        resolve();
      });
      socket.once('close', () => {
        resolve();
      });
    });
    socket.write(`${line}\n`);
    await within(WAIT_MS, 'an answer of the launcher', answered);
    return { socket, answer };
  }

  const launch = (command: string, env: NodeJS.ProcessEnv = {}): ChildProcess =>
    spawn(join(dir, 'sf-launch'), ['127.0.0.1', command], { cwd: dir, env: { ...ENVIRONMENT, ...env } });

  /** A command that goes on for long; answers its pid. */
  async function launchLong(): Promise<{ program: ChildProcess; pids: number[] }> {
    const program = launch('sleep 300 & echo $$ $! > pids.new; mv pids.new pids; wait');
    const pids = await eventually(WAIT_MS, 'the command to run', () =>
      readFileSync(join(dir, 'pids'), 'utf8').trim().split(' ').map(Number),
    );
    expect(pids.every((pid) => existsSync(`/proc/${pid}`))).toBe(true);
    return { program, pids };
  }

  const gone = (pids: number[]): Promise<void> =>
    eventually(WAIT_MS, 'the processes to end', () => {
      expect(pids.filter((pid) => existsSync(`/proc/${pid}`))).toEqual([]);
    });

  beforeEach(async () => {
    dir = mkdtempSync('/tmp/sft-jobs-');
    symlinkSync(join(JOBS, 'sf-launch'), join(dir, 'sf-launch'));
    launcher = spawn('python3', ['-c', SERVE, join(dir, 'session')], { env: ENVIRONMENT, stdio: 'inherit' });
    await eventually(WAIT_MS, 'the launcher to listen', () => session());
    const { socket, answer } = await say('manager', `${session().secret} hold -`);
    expect(answer).toBe('ok\n');
    lifeline = socket;
  });

  afterEach(async () => {
    const ended = launcher.exitCode === null ? once(launcher, 'exit') : undefined;
    lifeline.destroy();
    await within(WAIT_MS, 'the end of the launcher', Promise.resolve(ended));
    rmSync(dir, { recursive: true });
  });

  it('carries streams, environment, folder and exit status', async () => {
    const command = 'pwd; echo "$GIVEN"; wc -c; echo wrong >&2; exit 7';
    const outcome = await outcomeOf(launch(command, { GIVEN: 'a b' }), 'x'.repeat(300_000));
    expect(outcome).toEqual({ status: 7, out: `${dir}\na b\n300000\n`, err: 'wrong\n' });
    expect(await outcomeOf(launch('kill -9 $$'))).toMatchObject({ status: 137 });
  });

  it('runs many commands at once', async () => {
    const all = await Promise.all([1, 2, 3, 4, 5, 6].map((k) => outcomeOf(launch(`echo ${k}; exit ${k}`))));
    expect(all).toEqual([1, 2, 3, 4, 5, 6].map((k) => ({ status: k, out: `${k}\n`, err: '' })));
  });

  it.each(['manager', 'stdin', 'stdout', 'stderr'])(
    'hangs up on the port for %s without the secret',
    async (port) => {
      const { secret } = session();
      const wrong = [
        `${'0'.repeat(64)} start x`,
        `${secret.slice(1)} start x`,
        `é start x`,
        '',
        'x'.repeat(9000),
      ];
      for (const line of wrong) expect((await say(port, line)).answer).toBe('');
      expect(launcher.exitCode).toBeNull();
    },
  );

  it('ends the processes of a connection that is lost', async () => {
    const { program, pids } = await launchLong();
    program.kill('SIGKILL');
    await gone(pids);
    expect(await outcomeOf(launch('echo still here'))).toMatchObject({ status: 0, out: 'still here\n' });
  });

  it('ends with its lifeline, and all processes with it', async () => {
    const { program, pids } = await launchLong();
    const outcome = outcomeOf(program);
    lifeline.destroy();
    await gone(pids);
    await eventually(WAIT_MS, 'the launcher to end', () => {
      expect(launcher.exitCode).toBe(0);
    });
    expect((await outcome).status).not.toBe(0);
    expect(await outcomeOf(launch('true'))).toMatchObject({
      status: 255,
      err: expect.stringContaining('cannot reach the launcher in 127.0.0.1') as string,
    });
  });
});

describe.skipIf(!haveTools('python3'))('sfmpirun', () => {
  const env = { ...ENVIRONMENT, SNOWFLOCK_AGENT_SOCKET: '/nonexistent' };
  const sfmpirun = (...args: string[]): Promise<Outcome> =>
    outcomeOf(spawn(join(GUEST, 'mpi/sfmpirun'), args, { env }));

  it.each([
    [[], 'how many processes'],
    [['4'], 'which program'],
    [['0', 'true'], "not '0'"],
    [['four', 'true'], "not 'four'"],
    [['-i'], '-i needs a port'],
    [['-m', '70000', '4', 'true'], "not '70000'"],
    [['-i', '5000', '-o', '5000', '4', 'true'], 'each port must be another one'],
    [['-x', '4', 'true'], 'there is no option -x'],
  ])('refuses %j', async (args, text) => {
    const { status, err } = await sfmpirun(...args);
    expect(status).toBe(2);
    expect(err).toContain(text);
    expect(err).toContain('usage: sfmpirun [-i');
  });

  it('says why a program cannot run, before anything is asked for', async () => {
    expect(await sfmpirun('2', '/nonexistent/program', 'x')).toMatchObject({
      status: 127,
      err: 'sfmpirun: /nonexistent/program is not there; nothing was cloned\n',
    });
    expect(await sfmpirun('2', '/etc/passwd')).toMatchObject({ status: 126 });
    const help = await promisify(execFile)(join(GUEST, 'mpi/sfmpirun'), ['--help'], { env });
    expect(help.stdout).toContain('Clones this VM');
  });
});

describe.skipIf(!haveTools('python3'))('sfdistcc', () => {
  const env = { ...ENVIRONMENT, SNOWFLOCK_AGENT_SOCKET: '/nonexistent' };
  const sfdistcc = (...args: string[]): Promise<Outcome> =>
    outcomeOf(spawn(join(GUEST, 'distcc/sfdistcc'), args, { env }));

  it.each([
    [[], 'which command'],
    [['-n'], '-n needs a number'],
    [['-n', '0', 'make'], "not '0'"],
    [['-n', 'x', 'make'], "not 'x'"],
    [['-x', 'make'], 'there is no option -x'],
    [['make'], 'for how many processors'],
    [['make', '-j'], 'for how many processors'],
    [['make', '-j99999'], "not '99999'"],
  ])('refuses %j', async (args, text) => {
    const { status, err } = await sfdistcc(...args);
    expect(status).toBe(2);
    expect(err).toContain(text);
    expect(err).toContain('usage: sfdistcc [-n');
  });

  it.each([[['-j4']], [['-j', '4']], [['--jobs=4']], [['--jobs', '4']], [['-j2', 'all', '-j4']]])(
    'takes the number of processors from %j',
    async (args) => {
      const script = `
import importlib.machinery, importlib.util, sys
loader = importlib.machinery.SourceFileLoader("sfdistcc", sys.argv[1])
module = importlib.util.module_from_spec(importlib.util.spec_from_loader("sfdistcc", loader))
loader.exec_module(module)
print(*module.parse(sys.argv[2:]))`;
      const words = ['make', ...args];
      const program = spawn('python3', ['-c', script, join(GUEST, 'distcc/sfdistcc'), ...words], { env });
      const list = words.map((word) => `'${word}'`).join(', ');
      expect(await outcomeOf(program)).toMatchObject({ status: 0, out: `4 [${list}]\n` });
    },
  );

  it('says what is missing, before anything is asked for', async () => {
    expect(await sfdistcc('/nonexistent/make', '-j2')).toMatchObject({
      status: 127,
      err: 'sfdistcc: /nonexistent/make is not there; nothing was cloned\n',
    });
  });
});
