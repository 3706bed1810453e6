// The state machine of the whole system: one command at a time changes the state and yields effects.
//
//   apply(system, command, chance) ─▶ Effect[]      throws SnowflockError before it has changed anything
//
// Single writer: whoever owns the SystemData applies commands one after the other and carries out the effects. After a
// restart, what the effects were for is still in the state: open cleanups, and tickets that are still preparing.

import type { HostReport, LaunchReport, TicketRequest, VmEnded, VmShape } from '@snowflock/protocol';
import type { Effect } from './effects.ts';
import {
  cleaned,
  hostReported,
  masterFailed,
  masterStarted,
  seed,
  shutdown,
  tick,
  vmEnded,
} from './lifecycle.ts';
import type { Cleanup, SystemData } from './state.ts';
import { cancelRequest, requestTicket, type Chance } from './queue.ts';
import { disposeTicket, launched, mergeAll, mergeTicket, prepared, redeem } from './tickets.ts';

export type { Effect } from './effects.ts';
export { findCluster, findTicket, openCluster, pastOf } from './lookup.ts';
export type { Chance } from './queue.ts';

export type Command =
  | {
      readonly type: 'host-reported';
      readonly host: string;
      readonly report: HostReport;
      readonly nowMs: number;
    }
  | { readonly type: 'tick'; readonly nowMs: number }
  | { readonly type: 'seed'; readonly shape: VmShape }
  | { readonly type: 'master-started'; readonly clusterid: number; readonly diskBytes: number }
  | { readonly type: 'master-failed'; readonly clusterid: number; readonly reason: string }
  | {
      readonly type: 'request-ticket';
      readonly clusterid: number;
      readonly requestId: string;
      readonly request: TicketRequest;
    }
  | { readonly type: 'cancel-request'; readonly requestId: string }
  | {
      readonly type: 'prepared';
      readonly clusterid: number;
      readonly ticket: string;
      readonly host: string;
      readonly part: 'clones' | 'source';
      /** Null: it worked. */
      readonly error: string | null;
    }
  | { readonly type: 'redeem' | 'merge' | 'dispose'; readonly clusterid: number; readonly ticket: string }
  | { readonly type: 'merge-all'; readonly clusterid: number }
  | {
      readonly type: 'launched';
      readonly clusterid: number;
      readonly ticket: string;
      readonly report: LaunchReport;
    }
  | { readonly type: 'vm-ended'; readonly clusterid: number; readonly vmid: number; readonly ended: VmEnded }
  | {
      readonly type: 'shutdown';
      readonly clusterid: number;
      readonly force: boolean;
      readonly byGuest: boolean;
    }
  | ({ readonly type: 'cleaned' } & Cleanup);

/** Applies one command. Atomic: when it throws, the state is as before. */
export function apply(system: SystemData, command: Command, chance: Chance): Effect[] {
  switch (command.type) {
    case 'host-reported':
      return hostReported(system, command, chance);
    case 'tick':
      return tick(system, command.nowMs);
    case 'seed':
      return seed(system, command.shape, chance);
    case 'master-started':
      return masterStarted(system, command);
    case 'master-failed':
      return masterFailed(system, command, chance);
    case 'request-ticket':
      return requestTicket(system, command, chance);
    case 'cancel-request':
      return cancelRequest(system, command.requestId, chance);
    case 'prepared':
      return prepared(system, command);
    case 'redeem':
      return redeem(system, command);
    case 'merge':
      return mergeTicket(system, command);
    case 'dispose':
      return disposeTicket(system, command);
    case 'merge-all':
      return mergeAll(system, command.clusterid);
    case 'launched':
      return launched(system, command, chance);
    case 'vm-ended':
      return vmEnded(system, command, chance);
    case 'shutdown':
      return shutdown(system, command, chance);
    case 'cleaned':
      return cleaned(
        system,
        { host: command.host, clusterid: command.clusterid, ticket: command.ticket },
        chance,
      );
  }
}
