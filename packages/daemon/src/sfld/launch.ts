// The last step of a fork on the parent's side: the descriptor goes to every target host.

import { setTimeout as sleep } from 'node:timers/promises';
import { LaunchReply, SnowflockError, toSnowflockError, type Placement } from '@snowflock/protocol';
import type { HostContext } from './context.ts';

/** Clones start in some 100 ms; on a loaded host under emulation in seconds. */
const LAUNCH_TIMEOUT_MS = 60_000;
/** An sfld that is started again takes over the clones that wait; sfmd counts its host as down after 8 s. */
const RESTART_MS = 8_000;
const RESTART_POLL_MS = 100;

/** To each host at once; a host that fails costs its clones only. */
export async function launchClones(
  context: Pick<HostContext, 'peers' | 'log'>,
  fork: { readonly ticket: string; readonly clones: readonly Placement[]; readonly descriptor: Buffer },
): Promise<LaunchReply['clones']> {
  const { ticket, clones, descriptor } = fork;
  const byHost = Map.groupBy(clones, (clone) => clone.host);
  const replies = [...byHost.values()].map(async (placed): Promise<LaunchReply['clones']> => {
    const [first] = placed;
    if (!first) return [];
    const { host } = first;
    const down = context.peers.downSignal(host);
    try {
      return await launchOn(context, first, { ticket, descriptor, signal: down });
    } catch (thrown) {
      const reason = `host ${host}: ${toSnowflockError(down.aborted ? down.reason : thrown).message}`;
      context.log.warn({ ticket, host, reason }, 'launch failed');
      return placed.map(({ vmid }) => ({ vmid, ok: false, reason }));
    }
  });
  return (await Promise.all(replies)).flat();
}

async function launchOn(
  { peers }: Pick<HostContext, 'peers'>,
  { host, address, sfldPort: port }: Placement,
  fork: { readonly ticket: string; readonly descriptor: Buffer; readonly signal: AbortSignal },
): Promise<LaunchReply['clones']> {
  const { ticket, descriptor: body, signal } = fork;
  const path = `/v1/tickets/${ticket}/launch`;
  for (const startedAtMs = performance.now(); ;) {
    try {
      const client = peers.client({ host, address, port });
      const timeoutMs = LAUNCH_TIMEOUT_MS;
      const reply = await client.request({
        method: 'POST',
        path,
        body,
        reply: LaunchReply,
        timeoutMs,
        signal,
      });
      return reply.clones;
    } catch (error) {
      if (!isRefused(error) || performance.now() - startedAtMs > RESTART_MS) throw error;
    }
    await sleep(RESTART_POLL_MS, undefined, { signal });
  }
}

/** Nobody listens, so the request has certainly not been seen. */
function isRefused(error: unknown): boolean {
  const cause =
    error instanceof SnowflockError ? (error.cause as NodeJS.ErrnoException | undefined) : undefined;
  return cause?.code === 'ECONNREFUSED';
}
