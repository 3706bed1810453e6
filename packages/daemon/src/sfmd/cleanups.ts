// Carries out open cleanups: asks the host to destroy, again and again until it has, at most one attempt at a time each.
//
//   open ─▶ attempt ──ok──▶ 'cleaned' ─▶ gone
//             ▲  └──failed, or host down──▶ overdue ──(backoff, or the host reports)──┐
//             └───────────────────────────────────────────────────────────────────────┘

import { setTimeout as sleep } from 'node:timers/promises';
import { toSnowflockError } from '@snowflock/protocol';
import type { Cleanup } from '@snowflock/cluster';
import type { Log } from '../log.ts';

/** Between attempts; a host's first report after silence cuts the wait short. */
const RETRY_MIN_MS = 500;
const RETRY_MAX_MS = 10_000;

export interface CleanupPorts {
  /** Null when the host is down: then there is no point in asking. */
  readonly destroy: (cleanup: Cleanup) => Promise<void> | null;
  readonly isOpen: (cleanup: Cleanup) => boolean;
  readonly onDone: (cleanup: Cleanup) => void;
  /** An attempt failed; nobody needs to wait for this one any more. */
  readonly onOverdue: (cleanup: Cleanup) => void;
  readonly log: Log;
  readonly closing: AbortSignal;
}

export class Cleanups {
  readonly #ports: CleanupPorts;
  readonly #overdue = new Set<string>();
  readonly #retryNow = new Map<string, AbortController>();

  constructor(ports: CleanupPorts) {
    this.#ports = ports;
  }

  /** Runs in the background until it is done or the daemon closes. */
  start(cleanup: Cleanup): void {
    this.#run(cleanup).catch((error: unknown) => {
      if (!this.#ports.closing.aborted) this.#ports.log.error({ err: error, ...cleanup }, 'cleanup stopped');
    });
  }

  isOverdue(cleanup: Cleanup): boolean {
    return this.#overdue.has(keyOf(cleanup));
  }

  hostIsBack(host: string): void {
    this.#retryNow.get(host)?.abort();
    this.#retryNow.delete(host);
  }

  async #run(cleanup: Cleanup): Promise<void> {
    const { destroy, isOpen, onDone, onOverdue, log, closing } = this.#ports;
    for (
      let waitMs = RETRY_MIN_MS;
      isOpen(cleanup) && !closing.aborted;
      waitMs = Math.min(waitMs * 2, RETRY_MAX_MS)
    ) {
      try {
        const attempt = destroy(cleanup);
        if (attempt) {
          await attempt;
          this.#overdue.delete(keyOf(cleanup));
          return onDone(cleanup);
        }
      } catch (error) {
        log.warn(
          { ...cleanup, reason: toSnowflockError(error).message, retryMs: waitMs },
          'a host could not clean up; trying again',
        );
      }
      this.#overdue.add(keyOf(cleanup));
      onOverdue(cleanup);
      await this.#pause(cleanup.host, waitMs);
    }
    this.#overdue.delete(keyOf(cleanup));
  }

  async #pause(host: string, waitMs: number): Promise<void> {
    const back = this.#retryNow.get(host) ?? new AbortController();
    this.#retryNow.set(host, back);
    const signal = AbortSignal.any([back.signal, this.#ports.closing]);
    await sleep(waitMs, undefined, { signal }).catch((error: unknown) => {
      if (!signal.aborted) throw error;
    });
  }
}

function keyOf({ host, clusterid, ticket, vmid }: Cleanup): string {
  return `${host}/${clusterid}/${ticket ?? '*'}/${vmid ?? '*'}`;
}
