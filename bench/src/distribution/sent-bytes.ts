// What has left the parent of a fork, counted where it leaves.

import type { Lab } from '@snowflock/lab';
import { z } from 'zod';

const STATS_TIMEOUT_MS = 15_000;

const Served = z.object({
  sentBytes: z.number(),
  multicast: z.object({ multicastBytes: z.number() }).nullable(),
});

/** By the memserver of a ticket, so far: over lanes, and once what went to all. */
export async function servedBytes(lab: Lab, host: string, ticket: string): Promise<number> {
  const asked = { method: 'GET', path: `/v1/sources/${ticket}`, reply: Served } as const;
  const { sentBytes, multicast } = await lab
    .client(numberOf(lab, host))
    .request({ ...asked, timeoutMs: STATS_TIMEOUT_MS });
  return sentBytes + (multicast?.multicastBytes ?? 0);
}

const Links = z.array(z.object({ stats64: z.object({ tx: z.object({ bytes: z.number() }) }) })).min(1);

/** By the network card of a host, so far. */
export async function cableBytes(lab: Lab, host: string): Promise<number> {
  const shown = await lab.exec(numberOf(lab, host), ['ip', '-j', '-s', 'link', 'show', 'dev', 'eth0']);
  return Links.parse(JSON.parse(shown.stdout.toString()))[0]?.stats64.tx.bytes ?? Number.NaN;
}

function numberOf(lab: Lab, host: string): number {
  const found = lab.hosts.find(({ name }) => name === host);
  if (!found) throw new Error(`lab '${lab.name}' has no host ${host}`);
  return found.k;
}
