// Threads that were sent a signal while they wait for a READ.
//
// The kernel tells a FUSE server of the first signal to a waiting thread (INTERRUPT) and of no later one, and a fault that
// is answered EINTR is fatal to the thread. So a READ is let go only when its asker is being killed anyway, and whoever
// was sent another signal first is looked at again until it is answered.

import { readFileSync } from 'node:fs';
import { Errno } from './fuse/protocol.ts';
import type { SlotTable } from './slot-table.ts';

/** How often interrupted askers are looked at again. */
const POLL_MS = 20;
/** SIGKILL is signal 9. */
const SIGKILL_BIT = 1 << 8;

export class KilledAskers {
  readonly #slots: SlotTable;
  #poll: NodeJS.Timeout | undefined;
  /** READs let go of. */
  released = 0;

  constructor(slots: SlotTable) {
    this.#slots = slots;
  }

  interrupted(unique: { readonly low: number; readonly high: number }): void {
    const held = this.#slots.find(unique);
    if (held === undefined) return;
    held.interrupted = true;
    this.#look();
  }

  close(): void {
    clearInterval(this.#poll);
    this.#poll = undefined;
  }

  #look(): void {
    let left = false;
    for (const held of [...this.#slots.waiting]) {
      if (!held.interrupted) continue;
      if (isBeingKilled(held.pid)) {
        this.released++;
        this.#slots.fail(held, Errno.EINTR);
      } else {
        left = true;
      }
    }
    if (!left) this.close();
    else this.#poll ??= setInterval(() => this.#look(), POLL_MS);
  }
}

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
