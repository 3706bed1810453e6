// The pid file: who runs, checked against what that process is, so that a reused pid is not taken for sfmd.

import { readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';

export function pidFile(runDir: string): string {
  return join(runDir, 'sfmd.pid');
}

export async function writePidFile(path: string): Promise<void> {
  await writeFile(path, `${process.pid}\n`, { mode: 0o644 });
}

/** Leaves another process's file alone. */
export async function removePidFile(path: string): Promise<void> {
  if ((await readText(path))?.trim() === String(process.pid)) await rm(path, { force: true });
}

/** The pid of the sfmd that runs, or null. */
export async function runningPid(path: string): Promise<number | null> {
  const text = (await readText(path))?.trim() ?? '';
  if (!/^[1-9]\d{0,9}$/.test(text)) return null;
  return (await isSfmd(Number(text))) ? Number(text) : null;
}

/** Whether a live process with this pid is an sfmd; one that waits for its parent to reap it is not alive. */
export async function isSfmd(pid: number): Promise<boolean> {
  return /sfmd\/main\.ts\0/.test((await readText(`/proc/${pid}/cmdline`)) ?? '');
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
