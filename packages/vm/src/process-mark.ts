// Which process: a pid alone may be somebody else's by the time it is used.

import { readFileSync } from 'node:fs';

export interface ProcessMark {
  readonly pid: number;
  /** Field 22 of /proc/PID/stat: clock ticks from the machine's start to the process's. No two processes have both alike. */
  readonly startTicks: number;
}

/** Of a process that runs. Null when it has ended; one that only waits to be reaped has. */
export function markProcess(pid: number): ProcessMark | null {
  let stat: string;
  try {
    stat = readFileSync(`/proc/${pid}/stat`, 'latin1');
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === 'ENOENT' || code === 'ESRCH') return null;
    throw error;
  }
  // The command's name, in parentheses, may hold anything; the state (field 3) is the first word behind it (proc(5)).
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  if (fields[0] === 'Z' || fields[0] === 'X') return null;
  return { pid, startTicks: Number(fields[19]) };
}

export function isRunning(mark: ProcessMark): boolean {
  return markProcess(mark.pid)?.startTicks === mark.startTicks;
}

/** SIGKILL, if it still runs. */
export function killProcess(mark: ProcessMark): void {
  if (!isRunning(mark)) return;
  try {
    process.kill(mark.pid, 'SIGKILL');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error;
  }
}
