// Whether a thread that waits for a READ is being killed. The kernel tells a FUSE server of any signal to a waiting thread
// (INTERRUPT), but a fault that is answered EINTR is fatal to the thread; so only one that dies anyway may be let go.

import { readFileSync } from 'node:fs';

const SIGKILL_BIT = 1 << 8;

export function isBeingKilled(threadId: number): boolean {
  let status: string;
  try {
    status = readFileSync(`/proc/${threadId}/status`, 'latin1');
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === 'ENOENT' || code === 'ESRCH') return true;
    throw error;
  }
  // SigPnd is the thread's own set, ShdPnd the process's; both are 64-bit hexadecimal
  for (const [, hex] of status.matchAll(/^(?:SigPnd|ShdPnd):\s*([0-9a-f]+)$/gm))
    if ((Number.parseInt((hex ?? '').slice(-8), 16) & SIGKILL_BIT) !== 0) return true;
  return false;
}
