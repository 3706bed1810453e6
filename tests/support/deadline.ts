// Every wait of a test has an end.

import { setTimeout as sleep } from 'node:timers/promises';

const POLL_MS = 50;
const LATE = 'an attempt';
const PATIENCE = 3;

/**
 * Tests say what a thing takes at most on a machine that does nothing else. Other tests run at the same time, though, and a test is about
 * what happens: all deadlines, and bounds of what was timed, are this much longer.
 */
export function patient(ms: number): number {
  return ms * PATIENCE;
}

/** The promise, or an error that names what did not come in `patient(ms)`. */
export function within<T>(ms: number, what: string, promise: Promise<T>): Promise<T> {
  return withinExactly(patient(ms), what, promise);
}

/** For what is left of a deadline that was patient already. */
export async function withinExactly<T>(deadlineMs: number, what: string, promise: Promise<T>): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_resolve, reject) => {
    timer = setTimeout(() => reject(new Error(`${what}: not within ${deadlineMs} ms`)), deadlineMs);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}

/** Calls `attempt` until it does not throw; then its value. After `patient(ms)`: what was waited for, and its last error. */
export async function eventually<T>(ms: number, what: string, attempt: () => T | Promise<T>): Promise<T> {
  const deadlineMs = patient(ms);
  const end = performance.now() + deadlineMs;
  let last: unknown = 'the first attempt did not end';
  while (performance.now() < end) {
    try {
      return await withinExactly(end - performance.now(), LATE, Promise.resolve(attempt()));
    } catch (error) {
      if (!String(error).includes(LATE)) last = error;
    }
    await sleep(POLL_MS);
  }
  throw new Error(`${what}: not within ${deadlineMs} ms: ${String(last)}`, { cause: last });
}

/** How long it took, in ms, and its outcome. */
export async function timed<T>(work: () => Promise<T>): Promise<{ ms: number; value: T }> {
  const begin = performance.now();
  const value = await work();
  return { ms: performance.now() - begin, value };
}
