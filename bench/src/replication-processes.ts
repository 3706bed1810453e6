// The memtaps and memservers of a lab, looked up in /proc: what they cost, and what a memtap says on its control socket. Reads only;
// the processes belong to their sflds.

import { readdir, readFile } from 'node:fs/promises';
import { dirname } from 'node:path';
import type { Lab } from '@snowflock/lab';
import { MemtapProcess } from '@snowflock/replication';

/** USER_HZ of Linux on x86-64: the unit of times in /proc/PID/stat. */
const TICKS_PER_SECOND = 100;

export interface ReplicationProcess {
  readonly kind: 'memtap' | 'memserver';
  readonly pid: number;
  /** Number of the lab host it works for. */
  readonly host: number;
  readonly controlPath: string;
}

export async function replicationProcesses(lab: Lab): Promise<ReplicationProcess[]> {
  const found: ReplicationProcess[] = [];
  for (const entry of await readdir('/proc')) {
    if (!/^\d+$/.test(entry)) continue;
    const argv = (await readOrEmpty(`/proc/${entry}/cmdline`)).split('\0');
    const kind = argv.map((word) => /\/(memtap|memserver)\/main\.ts$/.exec(word)?.[1]).find(Boolean);
    const controlPath = argv[argv.indexOf('--control') + 1] ?? '';
    const host = lab.hosts.find(({ dir }) => controlPath.startsWith(`${dir}/`));
    if (host && (kind === 'memtap' || kind === 'memserver'))
      found.push({ kind, pid: Number(entry), host: host.k, controlPath });
  }
  return found;
}

/** User and system time so far. */
export async function cpuMs(pid: number): Promise<number> {
  const stat = await readFile(`/proc/${pid}/stat`, 'utf8');
  // the name in parentheses may hold spaces; utime and stime are fields 14 and 15
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  return ((Number(fields[11]) + Number(fields[12])) * 1000) / TICKS_PER_SECOND;
}

/** Memory that nobody shares with the process. */
export async function privateBytes(pid: number): Promise<number> {
  const text = await readFile(`/proc/${pid}/smaps_rollup`, 'utf8');
  const kib = (name: string): number =>
    Number(new RegExp(`^${name}:\\s+(\\d+) kB`, 'm').exec(text)?.[1] ?? 0);
  return (kib('Private_Clean') + kib('Private_Dirty')) * 1024;
}

/** Works with a memtap that its sfld goes on owning. */
export async function withMemtap<T>(
  { pid, controlPath }: ReplicationProcess,
  work: (memtap: MemtapProcess) => Promise<T>,
): Promise<T> {
  const memtap = await MemtapProcess.attachTo({ pid, controlPath, mountPath: dirname(controlPath) });
  try {
    return await work(memtap);
  } finally {
    memtap.detach();
  }
}

/** Empty when the process has gone meanwhile. */
async function readOrEmpty(path: string): Promise<string> {
  return readFile(path, 'utf8').catch(() => '');
}
