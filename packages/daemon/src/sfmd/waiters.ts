// Waiting for the state to become something, with a deadline and a caller who may go away.

import { setImmediate } from 'node:timers/promises';
import { SnowflockError } from '@snowflock/protocol';

export interface UntilOptions {
  /** Null: as long as the caller waits. */
  readonly timeoutMs: number | null;
  readonly signal?: AbortSignal;
}

/** check() is called after every change; each waiter is resolved once. */
export class Waiters {
  readonly #waiting = new Set<() => void>();

  check(): void {
    for (const look of [...this.#waiting]) look();
  }

  /** True when it holds, false at the deadline; throws 'interrupted' (or the signal's own SnowflockError) on abort. */
  until(holds: () => boolean, { timeoutMs, signal }: UntilOptions): Promise<boolean> {
    return new Promise((resolve, reject) => {
      const end = (settle: () => void): void => {
        this.#waiting.delete(look);
        clearTimeout(timer);
        signal?.removeEventListener('abort', onAbort);
        settle();
      };
      const look = (): void => {
        if (holds()) end(() => resolve(true));
      };
      const onAbort = (): void => end(() => reject(abortError(signal)));
      const timer = timeoutMs === null ? undefined : setTimeout(() => end(() => resolve(false)), timeoutMs);
      this.#waiting.add(look);
      signal?.addEventListener('abort', onAbort, { once: true });
      if (signal?.aborted) onAbort();
      else look();
    });
  }
}

export function abortError(signal: AbortSignal | undefined): SnowflockError {
  if (signal?.reason instanceof SnowflockError) return signal.reason;
  return new SnowflockError('interrupted', 'the caller is gone', { cause: signal?.reason });
}

/** Turns of the event loop between a request and the end of its connection when both were there; measured: 3. */
const END_SEEN_TURNS = 6;

/** Throws when the caller has left already: both its request and its end may have waited for this daemon to run again. */
export async function stillThere(signal: AbortSignal): Promise<void> {
  for (let turn = 0; turn < END_SEEN_TURNS && !signal.aborted; turn++) await setImmediate();
  if (signal.aborted) throw abortError(signal);
}
