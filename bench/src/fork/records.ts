// What the daemons of a lab have recorded of a fork.

import { setTimeout as sleep } from 'node:timers/promises';
import type { Lab } from '@snowflock/lab';
import { CloneRecord, ForkRecord } from '@snowflock/protocol';
import { z } from 'zod';

const REQUEST_TIMEOUT_MS = 120_000;
const PREPARED_TIMEOUT_MS = 60_000;
const POLL_MS = 50;

export async function cloneRecords(lab: Lab, ticket: string): Promise<CloneRecord[]> {
  return everywhere(lab, `/v1/clones?ticket=${ticket}`, z.array(CloneRecord));
}

export async function forkRecord(lab: Lab, ticket: string): Promise<ForkRecord> {
  const [record] = await everywhere(lab, `/v1/forks?ticket=${ticket}`, z.array(ForkRecord));
  if (!record) throw new Error(`no record of the fork of ticket ${ticket}`);
  return record;
}

/** Waits until the clones of a ticket wait for its fork. */
export async function preparedClones(lab: Lab, ticket: string, count: number): Promise<CloneRecord[]> {
  return until(PREPARED_TIMEOUT_MS, `the ${count} clones to wait`, async () => {
    const found = await cloneRecords(lab, ticket);
    return found.length === count ? found : undefined;
  });
}

async function everywhere<T>(lab: Lab, path: string, reply: z.ZodType<T[]>): Promise<T[]> {
  const asked = lab.hosts.map(({ k }) =>
    lab.client(k).request({ method: 'GET', path, reply, timeoutMs: REQUEST_TIMEOUT_MS }),
  );
  return (await Promise.all(asked)).flat();
}

/** Looks until there is something to be seen. */
export async function until<T>(
  timeoutMs: number,
  what: string,
  look: () => Promise<T | undefined>,
  pollMs: number = POLL_MS,
): Promise<T> {
  const end = performance.now() + timeoutMs;
  while (performance.now() < end) {
    const found = await look();
    if (found !== undefined) return found;
    await sleep(pollMs);
  }
  throw new Error(`${what}: not within ${timeoutMs} ms`);
}
