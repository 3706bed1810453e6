// The processes of a lab host: the holder, which keeps its namespaces, and the daemons.
//
// The holder is a sleeping process in the host's network namespace, with a mount namespace (its own /etc/hosts; what is
// mounted in it is seen by no other host) and a UTS namespace (its own hostname). Everything else joins them through
// it, so that a daemon that is started again finds the mounts of the first.

import { spawn, type ChildProcess } from 'node:child_process';
import { closeSync, openSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { runTool } from '@snowflock/network';
import { SnowflockError } from '@snowflock/protocol';
import { hostDir, hostName, hostNetns, labDir, namespaceOf } from './names.ts';
import type { DaemonName, HostRecord } from './record.ts';

const ROOT = join(import.meta.dirname, '..', '..');
/** Entry points of the daemons; tests put others in their place. */
export const DAEMON_MAINS: Readonly<Record<DaemonName, string>> = {
  sfmd: join(ROOT, 'packages/daemon/src/sfmd/main.ts'),
  sfld: join(ROOT, 'packages/daemon/src/sfld/main.ts'),
};

const HOLDER_TIMEOUT_MS = 10_000;
/** sfld measures the accelerator before it is ready (a second or two), and many start at once on few cores. */
export const DAEMON_READY_TIMEOUT_MS = 60_000;
const POLL_MS = 20;
const LOG_TAIL_BYTES = 4096;
const LOG_TAIL_LINES = 12;

const HOLDER_SCRIPT =
  'hostname "$1" && mount --bind "$2" /etc/hosts && echo ready && exec sleep infinity </dev/null >/dev/null 2>&1';

/** Starts the holder; when this resolves the host's namespaces are there. It outlives this process. */
export async function startHolder({ name, k }: { name: string; k: number }): Promise<HostRecord> {
  const script = ['sh', '-c', HOLDER_SCRIPT, 'sf-host', hostName(k), join(labDir(name), 'hosts')];
  // ip, unshare and sh exec one another: the pid stays.
  const child = spawn('ip', ['netns', 'exec', hostNetns(name, k), 'unshare', '--uts', ...script], {
    cwd: '/',
    detached: true,
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  await new Promise<void>((resolve, reject) => {
    let stderr = '';
    const fail = (why: string): void =>
      reject(new SnowflockError('internal', `lab '${name}': namespaces of ${hostName(k)}: ${why}`));
    const timer = setTimeout(() => {
      child.kill('SIGKILL');
      fail(`not there after ${HOLDER_TIMEOUT_MS} ms`);
    }, HOLDER_TIMEOUT_MS);
    child.stdout.once('data', () => {
      clearTimeout(timer);
      resolve();
    });
    child.stderr.on('data', (chunk: Buffer) => (stderr += chunk.toString()));
    child.once('error', (error) => fail(error.message));
    child.once('close', (status) => {
      clearTimeout(timer);
      fail(stderr.trim() || `exit status ${status ?? 'by signal'}`);
    });
  });
  child.stdout.destroy();
  child.stderr.destroy();
  child.unref();
  const holderPid = child.pid ?? 0;
  const netInode = namespaceOf(holderPid, 'net');
  if (netInode === undefined)
    throw new SnowflockError('internal', `lab '${name}': the holder of ${hostName(k)} died`);
  return { k, holderPid, netInode, daemons: {} };
}

/** Command line that runs argv on a lab host. */
export function onHostArgv(holderPid: number, argv: readonly string[]): string[] {
  return ['nsenter', '--target', String(holderPid), '--net', '--mount', '--uts', '--', ...argv];
}

export function daemonLog({ name, k, daemon }: { name: string; k: number; daemon: DaemonName }): string {
  return join(hostDir(name, k), `${daemon}.log`);
}

async function readFrom(path: string, offset: number): Promise<string> {
  const file = await open(path, 'r');
  try {
    const { size } = await file.stat();
    const buffer = Buffer.alloc(Math.max(0, size - offset));
    const { bytesRead } = await file.read(buffer, 0, buffer.length, offset);
    return buffer.toString('utf8', 0, bytesRead);
  } finally {
    await file.close();
  }
}

/** The last lines of a daemon's log, indented, for an error message. */
export async function logTail(path: string): Promise<string> {
  try {
    const file = await open(path, 'r');
    const { size } = await file.stat();
    await file.close();
    const lines = (await readFrom(path, Math.max(0, size - LOG_TAIL_BYTES))).trimEnd().split('\n');
    const text = lines.slice(-LOG_TAIL_LINES).join('\n  ');
    return text === '' ? `${path} is empty` : `the end of ${path}:\n  ${text}`;
  } catch (error) {
    return `no log: ${(error as Error).message}`;
  }
}

function saysReady(log: string): boolean {
  return log.split('\n').some((line) => /^\{.*"ready"\s*:\s*true/.test(line.trim()));
}

export interface StartDaemonOptions {
  readonly name: string;
  readonly host: HostRecord;
  readonly daemon: DaemonName;
  readonly main?: string | undefined;
  readonly signal?: AbortSignal | undefined;
}

/**
 * Starts `sfmd run` or `sfld run` on a lab host, in a session of its own, writing to HOST/sf?d.log; resolves with its
 * pid when it says that it is ready. When it does not, it is killed, and the error ends with its log.
 */
export async function startDaemon(options: StartDaemonOptions): Promise<number> {
  const { name, host, daemon, signal } = options;
  const path = daemonLog({ name, k: host.k, daemon });
  const fd = openSync(path, 'a');
  let child: ChildProcess;
  let offset: number;
  try {
    offset = (await logSize(path)) ?? 0;
    const config = join(hostDir(name, host.k), `${daemon}.cfg`);
    const argv = [process.execPath, options.main ?? DAEMON_MAINS[daemon], 'run', '--config', config];
    const [file = 'nsenter', ...args] = onHostArgv(host.holderPid, argv);
    child = spawn(file, args, {
      cwd: '/',
      detached: true,
      stdio: ['ignore', fd, fd],
      env: {
        ...process.env,
        NODE_COMPILE_CACHE: process.env.NODE_COMPILE_CACHE ?? join(ROOT, 'build/compile-cache'),
      },
    });
  } finally {
    closeSync(fd);
  }
  let ended: string | undefined;
  child.once('error', (error) => (ended = error.message));
  child.once(
    'exit',
    (status, by) => (ended = by ? `died of ${by}` : `ended with exit status ${status ?? '?'}`),
  );
  child.unref();
  const deadline = performance.now() + DAEMON_READY_TIMEOUT_MS;
  const fail = async (why: string): Promise<never> => {
    child.kill('SIGKILL');
    const text = `lab '${name}': ${daemon} of ${hostName(host.k)} ${why}; ${await logTail(path)}`;
    throw new SnowflockError(signal?.aborted ? 'interrupted' : 'unavailable', text);
  };
  while (!saysReady(await readFrom(path, offset))) {
    if (ended !== undefined) return fail(ended);
    if (signal?.aborted) return fail('was cancelled');
    if (performance.now() > deadline) return fail(`was not ready after ${DAEMON_READY_TIMEOUT_MS} ms`);
    await sleep(POLL_MS);
  }
  return child.pid ?? 0;
}

async function logSize(path: string): Promise<number | undefined> {
  const file = await open(path, 'r');
  try {
    return (await file.stat()).size;
  } finally {
    await file.close();
  }
}

/** Every process in a network namespace that has a name. */
export async function namespacePids(netns: string): Promise<number[]> {
  const text = await runTool('ip', ['netns', 'pids', netns]);
  return text.split('\n').filter(Boolean).map(Number);
}

/** Sends the signal; a process that is gone already is no error. */
export function sendSignal(pid: number, signal: NodeJS.Signals): void {
  try {
    process.kill(pid, signal);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error;
  }
}
