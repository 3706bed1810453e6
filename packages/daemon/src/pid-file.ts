// The pid file: who runs, checked against what that process is, so that a reused pid is not taken for the daemon.
//
// Invariant: a daemon claims it before it touches anything in its run_dir, and gives it up last of all.

import { mkdir, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { SnowflockError } from '@snowflock/protocol';

/** One daemon of a host, running or not. */
export interface DaemonPlace {
  readonly name: 'sfmd' | 'sfld';
  readonly runDir: string;
}

export function pidFile({ name, runDir }: DaemonPlace): string {
  return join(runDir, `${name}.pid`);
}

/** Names this process as the daemon until disposed. Throws 'unavailable' when another one runs. */
export async function claimPidFile(place: DaemonPlace): Promise<AsyncDisposable> {
  const other = await runningPid(place);
  if (other !== null && other !== process.pid) throw alreadyRunning(place, other);
  await mkdir(place.runDir, { recursive: true, mode: 0o700 });
  const path = pidFile(place);
  await writeFile(path, `${process.pid}\n`, { mode: 0o644 });
  return {
    async [Symbol.asyncDispose]() {
      // Another process's file is left alone.
      if ((await readText(path))?.trim() === String(process.pid)) await rm(path, { force: true });
    },
  };
}

export function alreadyRunning({ name, runDir }: DaemonPlace, pid: number): SnowflockError {
  return new SnowflockError('unavailable', `${name} is running already (pid ${pid}, run_dir ${runDir})`);
}

/** The pid of the daemon that runs, or null. */
export async function runningPid(place: DaemonPlace): Promise<number | null> {
  const text = (await readText(pidFile(place)))?.trim() ?? '';
  if (!/^[1-9]\d{0,9}$/.test(text)) return null;
  return (await isDaemon(place.name, Number(text))) ? Number(text) : null;
}

/** Whether a live process with this pid is such a daemon; one that waits for its parent to reap it is not alive. */
export async function isDaemon(name: DaemonPlace['name'], pid: number): Promise<boolean> {
  const argv = ((await readText(`/proc/${pid}/cmdline`)) ?? '').split('\0');
  return argv.includes('run') && argv.some((argument) => argument.endsWith(`${name}/main.ts`));
}

async function readText(path: string): Promise<string | null> {
  try {
    return await readFile(path, 'utf8');
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === 'ENOENT' || code === 'ESRCH') return null;
    throw error;
  }
}
