// Two connections made one.

import type { Duplex } from 'node:stream';
import { pipeline } from 'node:stream/promises';

/** Each of two pipelines listens to both ends. */
const LISTENERS_MAX = 32;

/** Carries bytes both ways; resolves when either end has closed or failed, or the signal aborts, and both are closed. */
export async function joinConnections(
  one: Duplex,
  other: Duplex,
  { signal }: { readonly signal?: AbortSignal } = {},
): Promise<void> {
  for (const each of [one, other]) each.setMaxListeners(LISTENERS_MAX);
  const until = signal ? { signal } : {};
  await Promise.allSettled([pipeline(one, other, until), pipeline(other, one, until)]);
}
