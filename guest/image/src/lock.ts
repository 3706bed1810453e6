// A lock file between processes: it holds "PID START" of its owner, and is stale when no such process lives any more.

import { link, open, readFile, rename, rm } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';

const RETRY_MS = 100;

/** When a process was started, in clock ticks since boot: with its pid, its identity. */
async function startOf(pid: string): Promise<string | undefined> {
  try {
    const stat = await readFile(`/proc/${pid}/stat`, 'utf8');
    return stat.slice(stat.lastIndexOf(')') + 2).split(' ')[19];
  } catch {
    return undefined; // no such process
  }
}

async function textOf(path: string): Promise<string | undefined> {
  try {
    return await readFile(path, 'utf8');
  } catch {
    return undefined; // released meanwhile
  }
}

async function isStale(text: string): Promise<boolean> {
  const [pid = '', start] = text.trim().split(' ');
  // An empty file is one whose owner is just writing it, or died doing so; it is written in the same breath as it is made.
  return pid !== '' && /^\d+$/.test(pid) && (await startOf(pid)) !== start;
}

/** Moves a stale lock away. What was moved may already be a new owner's lock: then it is put back. */
async function removeStale(path: string, stale: string, token: string): Promise<void> {
  const aside = `${path}.${token}`;
  try {
    await rename(path, aside);
    if ((await textOf(aside)) !== stale) await link(aside, path);
  } catch (error) {
    if (!(error instanceof Error && 'code' in error && (error.code === 'ENOENT' || error.code === 'EEXIST')))
      throw error;
  } finally {
    await rm(aside, { force: true });
  }
}

async function tryTake(path: string, mine: string, token: string): Promise<boolean> {
  // Written aside and linked into place: nobody sees a lock without its owner.
  const aside = `${path}.${token}`;
  const file = await open(aside, 'w');
  try {
    await file.writeFile(mine);
  } finally {
    await file.close();
  }
  try {
    await link(aside, path);
    return true;
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === 'EEXIST') return false;
    throw error;
  } finally {
    await rm(aside, { force: true });
  }
}

let counter = 0;

export async function withLock<T>(
  path: string,
  options: { signal?: AbortSignal | undefined },
  action: () => Promise<T>,
): Promise<T> {
  const token = `${process.pid}.${counter++}`;
  const mine = `${process.pid} ${(await startOf(String(process.pid))) ?? ''}\n`;
  while (!(await tryTake(path, mine, token))) {
    options.signal?.throwIfAborted();
    const owner = await textOf(path);
    if (owner !== undefined && (await isStale(owner))) await removeStale(path, owner, token);
    else await sleep(RETRY_MS, undefined, { signal: options.signal });
  }
  try {
    return await action();
  } finally {
    await rm(path, { force: true });
  }
}
