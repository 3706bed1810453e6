// Asking sfmd, again when it does not answer: it may be restarted at any moment, and takes up where it was.
//
// Everything that is asked this way may be asked twice: either it changes nothing the second time, or it carries an id by
// which sfmd knows it again (TicketRequest.requestId, RedeemRequest.redemption), or a certain error says that the first
// time had worked (`done`).

import { setTimeout as sleep } from 'node:timers/promises';
import {
  CONTROL_CONNECT_TIMEOUT_MS,
  SnowflockError,
  type ControlClient,
  type ControlRequest,
  type ErrorCode,
} from '@snowflock/protocol';

/** Longer than a service manager takes to start sfmd again; sfmd keeps unclaimed what was asked for twice as long. */
const PATIENCE_MS = 30_000;
const PAUSE_MS = 250;
/** An attempt that took longer had reached sfmd: from then on there is new patience. */
const REACHED_AFTER_MS = 2 * CONTROL_CONNECT_TIMEOUT_MS;

export interface Repeatable<T> {
  /** Errors of a repetition that mean: the first attempt had worked, its answer got lost. */
  readonly done?: readonly ErrorCode[];
  /** What it is then; needed with `done`. */
  readonly doneReply?: T;
  readonly patienceMs?: number;
}

export async function askMaster<T>(
  masterDaemon: ControlClient,
  request: ControlRequest<T>,
  { done = [], doneReply, patienceMs = PATIENCE_MS }: Repeatable<T> = {},
): Promise<T> {
  let lostAtMs = performance.now();
  for (let attempt = 0; ; attempt++) {
    const askedAtMs = performance.now();
    try {
      return await masterDaemon.request(request);
    } catch (error) {
      if (!(error instanceof SnowflockError)) throw error;
      if (attempt > 0 && done.includes(error.code)) return doneReply as T;
      const nowMs = performance.now();
      if (attempt === 0 || nowMs - askedAtMs > REACHED_AFTER_MS) lostAtMs = nowMs;
      // 'unavailable': sfmd is stopping, or could not store it.
      const isAway = error.code === 'host-down' || error.code === 'unavailable';
      if (!isAway || nowMs - lostAtMs > patienceMs) throw error;
    }
    try {
      await sleep(PAUSE_MS, undefined, request.signal ? { signal: request.signal } : {});
    } catch (error) {
      throw new SnowflockError('interrupted', `${request.method} ${request.path}: cancelled`, {
        cause: error,
      });
    }
  }
}
