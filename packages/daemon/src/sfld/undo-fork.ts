// A fork that an sfld was killed in is undone by the next: what it has come to is not known, and its caller was told 'interrupted'.

import { setTimeout as sleep } from 'node:timers/promises';
import { NoReply, toSnowflockError, type ErrorCode, type VmRef } from '@snowflock/protocol';
import { logAbout } from '../log.ts';
import type { HostContext } from './context.ts';

const UNDO_TIMEOUT_MS = 30_000;
const UNDO_RETRY_MS = 1_000;
/** sfmd is away, or too busy. */
const AGAIN: readonly ErrorCode[] = ['host-down', 'timeout', 'unavailable', 'interrupted'];

/** Merges the ticket, so that no clone of it is left on any host; asks until sfmd has answered. False: given up, by `signal`. */
export async function undoFork(
  { masterDaemon, log }: Pick<HostContext, 'masterDaemon' | 'log'>,
  fork: VmRef & { readonly ticket: string; readonly signal: AbortSignal },
): Promise<boolean> {
  const { clusterid, vmid, ticket, signal } = fork;
  const about = logAbout(log, { clusterid, vmid, ticket });
  while (!signal.aborted) {
    try {
      await masterDaemon.request({
        method: 'POST',
        path: `/v1/clusters/${clusterid}/tickets/${ticket}/merge?vm=${vmid}`,
        reply: NoReply,
        timeoutMs: UNDO_TIMEOUT_MS,
        signal,
      });
      about.warn('a fork was cut short by the end of sfld: undone');
      return true;
    } catch (thrown) {
      const { code, message } = toSnowflockError(thrown);
      if (!AGAIN.includes(code)) {
        about.warn({ reason: message }, 'a fork was cut short by the end of sfld: there is nothing to undo');
        return true;
      }
    }
    await sleep(UNDO_RETRY_MS, undefined, { signal, ref: false }).catch(() => undefined); // the VM ended, or sfld stops
  }
  return false;
}
