// Starting a memserver or memtap and waiting for its readiness line.
//
//   spawned --line {"ready":true,...}--> ready --> exited
//      '--exit, deadline--> failed (killed; the error carries the end of its log)
//
// The child is detached, in a session of its own, so that it outlives its supervisor; its stderr goes to a log file.

import { spawn, type ChildProcess } from 'node:child_process';
import { closeSync, openSync, readFileSync } from 'node:fs';
import { SnowflockError } from '@snowflock/protocol/pages';
import { parseLine } from '../control/json-lines.ts';

/** Node starts in 50 ms here; a machine that starts many at once needs more. */
export const READY_TIMEOUT_MS = 15_000;
const READY_LINE_MAX_BYTES = 4096;
const LOG_TAIL_BYTES = 2000;
/**
 * A memserver's and a memtap's most important moment is their first: a fork. As they come, optimising compilers and a full
 * garbage collection run just then, on other threads but on the same CPUs that the clone needs (measured: half of all CPU
 * time of both, and a remote fault of 180 us in the median instead of 55). So: parse everything and make plain machine code
 * of it at the start, optimise what has really run often, and collect nothing before there is much garbage.
 */
const V8_FLAGS = [
  '--no-lazy',
  '--invocation-count-for-turbofan=20000',
  '--invocation-count-for-osr=5000',
  '--min-semi-space-size=16',
  '--max-semi-space-size=32',
  '--initial-heap-size=200',
  '--always-sparkplug',
  '--expose-gc',
];

/**
 * As it comes, glibc's malloc keeps an arena for each thread, and in them what V8 took to compile everything at the start, which is never needed
 * again (measured: 20 of a memtap's 144 MB, 10 of a memserver's 76). One arena, the end of which goes back to the kernel when it is free;
 * the data path allocates next to nothing, so nobody waits for it.
 */
const MALLOC = { MALLOC_ARENA_MAX: '1', MALLOC_TRIM_THRESHOLD_: String(2 ** 20) };

export interface ExitStatus {
  /** null when it is not our child (attached to later): only that it ended is known. */
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
}

export interface StartedChild {
  readonly pid: number;
  readonly ready: Record<string, unknown>;
  readonly exited: Promise<ExitStatus>;
}

export async function startChild(options: {
  readonly name: string;
  readonly v8Flags?: readonly string[];
  readonly script: URL;
  readonly args: readonly string[];
  readonly env?: Readonly<Record<string, string>>;
  readonly logPath: string;
  readonly readyTimeoutMs?: number;
}): Promise<StartedChild> {
  const log = openSync(options.logPath, 'a', 0o600);
  let child: ChildProcess;
  try {
    child = spawn(
      process.execPath,
      [...V8_FLAGS, ...(options.v8Flags ?? []), options.script.pathname, ...options.args],
      {
        detached: true,
        stdio: ['ignore', 'pipe', log],
        env: { ...process.env, ...MALLOC, ...options.env },
      },
    );
  } finally {
    closeSync(log);
  }
  const exited = new Promise<ExitStatus>((resolve) => {
    child.once('exit', (code, signal) => resolve({ code, signal }));
    child.once('error', () => resolve({ code: null, signal: null }));
  });
  try {
    const ready = await waitReady(child, options);
    child.unref();
    if (child.pid === undefined) throw new Error('a ready process has a pid');
    return { pid: child.pid, ready, exited };
  } catch (error) {
    child.kill('SIGKILL');
    throw error;
  }
}

function waitReady(
  child: ChildProcess,
  options: { readonly name: string; readonly logPath: string; readonly readyTimeoutMs?: number },
): Promise<Record<string, unknown>> {
  const { name, logPath, readyTimeoutMs = READY_TIMEOUT_MS } = options;
  const stdout = child.stdout;
  if (stdout === null) throw new Error('stdout is a pipe');
  return new Promise((resolve, reject) => {
    let text = '';
    const fail = (what: string): void => {
      clearTimeout(timer);
      reject(new SnowflockError('unavailable', `${name} ${what}${logTail(logPath)}`));
    };
    const timer = setTimeout(() => fail(`was not ready within ${readyTimeoutMs} ms`), readyTimeoutMs);
    child.once('error', (error) => fail(`could not be started: ${error.message}`));
    // 'close', not 'exit': the readiness line of a process that exits right after it still counts as seen
    child.once('close', (code, signal) => fail(`ended before it was ready (${signal ?? code ?? 'unknown'})`));
    stdout.on('data', (chunk: Buffer) => {
      text += chunk.toString('utf8');
      const end = text.indexOf('\n');
      if (end < 0 && text.length < READY_LINE_MAX_BYTES) return;
      const message = parseLine(text.slice(0, Math.max(0, end)));
      if (message?.['ready'] !== true) {
        fail('sent something else than its readiness line');
        return;
      }
      clearTimeout(timer);
      stdout.destroy();
      resolve(message);
    });
  });
}

function logTail(path: string): string {
  const lines = readFileSync(path, 'utf8').slice(-LOG_TAIL_BYTES).trim().split('\n');
  const text = lines
    .map((line) => {
      const message = parseLine(line)?.['msg'];
      return typeof message === 'string' ? message : line;
    })
    .join('\n');
  return text === '' ? '' : `: ${text}`;
}

/** Resolves when a process that is not our child is gone. */
export async function watchForeignPid(
  pid: number,
  options: { readonly pollMs: number },
): Promise<ExitStatus> {
  return new Promise((resolve) => {
    const timer = setInterval(() => {
      if (isAlive(pid)) return;
      clearInterval(timer);
      resolve({ code: null, signal: null });
    }, options.pollMs);
    timer.unref();
  });
}

/** Whether a process runs. A zombie does not: nobody may ever wait for an orphan where pid 1 is no init. */
export function isAlive(pid: number): boolean {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'latin1');
    // the command's name, in parentheses, may hold anything; the state is the letter behind it (proc(5))
    return !/^[ZX]/.test(stat.slice(stat.lastIndexOf(')') + 2));
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === 'ENOENT' || code === 'ESRCH') return false;
    throw error;
  }
}

/** Signals a process that may be gone already. */
export function signalIfAlive(pid: number, signal: NodeJS.Signals): void {
  try {
    process.kill(pid, signal);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error;
  }
}
