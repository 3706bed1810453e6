// Deadlines: every wait on another process has one.

import { SnowflockError } from '@snowflock/protocol';

/** The promise, or a 'timeout' error naming what was waited for. The promise itself is not cancelled. */
export async function within<T>(promise: Promise<T>, timeoutMs: number, what: string): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const expiry = new Promise<never>((_resolve, reject) => {
    timer = setTimeout(
      () => reject(new SnowflockError('timeout', `${what} did not happen within ${timeoutMs} ms`)),
      timeoutMs,
    );
  });
  try {
    return await Promise.race([promise, expiry]);
  } finally {
    clearTimeout(timer);
  }
}
