// The state machine of the whole system: one command at a time changes the state and yields effects.
//
//   apply(system, command, chance) ─▶ Effect[]      throws SnowflockError before it has changed anything
//
// Whatever a command was, what it has made free is offered to whoever waits.
//
// Single writer: whoever owns the SystemData applies commands one after the other, stores what changed, and only then
// carries out the effects. What becomes of effects that were not carried out: restart.ts.

import {
  checkpoint,
  checkpointDeleted,
  checkpointWritten,
  deleteCheckpoint,
  type CheckpointCommand,
  type CheckpointRef,
} from './checkpoints.ts';
import type {
  CheckpointWritten,
  HostReport,
  LaunchReport,
  TicketRequest,
  VmEnded,
  VmShape,
} from '@snowflock/protocol';
import type { Effect } from './effects.ts';
import { hostReported, tick } from './hosts.ts';
import {
  cleaned,
  masterFailed,
  masterStarted,
  seed,
  seedCheckpoint,
  shutdown,
  vmEnded,
} from './lifecycle.ts';
import type { Cleanup, SystemData, TicketAsk, TicketRef } from './state.ts';
import { cancelRequest, requestTicket, serveQueue, type Chance } from './queue.ts';
import { capacityChanged, type CapacityChange } from './lending.ts';
import { endClones } from './outcomes.ts';
import { migrate, migrated, migrateFailed, migrationFetched, type MigrateCommand } from './migration.ts';
import { restarted, type Restart } from './restart.ts';
import { delivered, disposeTicket, launched, mergeAll, mergeTicket, prepared, redeem } from './tickets.ts';

export type { Effect } from './effects.ts';
export { findCluster, findResettable, findTicket, openCluster, pastOf } from './lookup.ts';
export type { Chance } from './queue.ts';

export type Command =
  | ({ readonly type: 'restarted' } & Restart)
  | {
      readonly type: 'host-reported';
      readonly host: string;
      readonly report: HostReport;
      readonly nowMs: number;
    }
  | ({ readonly type: 'capacity-changed' } & CapacityChange)
  | { readonly type: 'tick'; readonly nowMs: number }
  | { readonly type: 'seed'; readonly shape: VmShape }
  /** `ticket`: what its pages are fetched under. */
  | { readonly type: 'seed-checkpoint'; readonly name: string; readonly ticket: string }
  | ({ readonly type: 'checkpoint' } & CheckpointCommand)
  | {
      readonly type: 'checkpoint-written';
      readonly name: string;
      readonly host: string;
      readonly written: CheckpointWritten;
    }
  | { readonly type: 'delete-checkpoint'; readonly name: string; readonly force: boolean }
  | ({ readonly type: 'checkpoint-deleted'; readonly kept: boolean } & CheckpointRef)
  | ({ readonly type: 'migrate' } & MigrateCommand)
  | ({ readonly type: 'migrated' | 'migrate-failed' | 'migration-fetched' } & TicketRef)
  | { readonly type: 'master-started'; readonly clusterid: number; readonly diskBytes: number }
  | { readonly type: 'master-failed'; readonly clusterid: number; readonly reason: string }
  | {
      readonly type: 'request-ticket';
      readonly clusterid: number;
      /** vmid of the VM that asks; absent: the master VM. */
      readonly by?: number | undefined;
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
  | ({
      readonly type: 'redeem';
      /** Who redeems; the same one may again. */
      readonly redemption?: string;
    } & TicketAsk)
  | ({ readonly type: 'delivered' | 'merge' | 'dispose' } & TicketAsk)
  | {
      readonly type: 'merge-all';
      readonly clusterid: number;
      /** Those of this VM; absent: all of the cluster. */
      readonly by?: number | undefined;
    }
  | {
      readonly type: 'end-clones';
      readonly clusterid: number;
      readonly ticket: string;
      /** Why a wait for them has enough. */
      readonly reason: string;
    }
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
  const effects = applyAlone(system, command, chance);
  return system.queue.length === 0 ? effects : [...effects, ...serveQueue(system, chance)];
}

function applyAlone(system: SystemData, command: Command, chance: Chance): Effect[] {
  switch (command.type) {
    case 'restarted':
      return restarted(system, command);
    case 'host-reported':
      return hostReported(system, command);
    case 'capacity-changed':
      return capacityChanged(system, command);
    case 'tick':
      return tick(system, command.nowMs);
    case 'seed':
      return seed(system, command.shape, chance);
    case 'seed-checkpoint':
      return seedCheckpoint(system, command, chance);
    case 'checkpoint':
      return checkpoint(system, command);
    case 'checkpoint-written':
      return checkpointWritten(system, command);
    case 'delete-checkpoint':
      return deleteCheckpoint(system, command);
    case 'checkpoint-deleted':
      return checkpointDeleted(system, command);
    case 'migrate':
      return migrate(system, command);
    case 'migrated':
      return migrated(system, command);
    case 'migrate-failed':
      return migrateFailed(system, command);
    case 'migration-fetched':
      return migrationFetched(system, command);
    case 'master-started':
      return masterStarted(system, command);
    case 'master-failed':
      return masterFailed(system, command);
    case 'request-ticket':
      return requestTicket(system, command, chance);
    case 'cancel-request':
      return cancelRequest(system, command.requestId);
    case 'prepared':
      return prepared(system, command);
    case 'delivered':
      return delivered(system, command);
    case 'redeem':
      return redeem(system, command);
    case 'merge':
      return mergeTicket(system, command);
    case 'dispose':
      return disposeTicket(system, command);
    case 'merge-all':
      return mergeAll(system, command);
    case 'end-clones':
      return endClones(system, command);
    case 'launched':
      return launched(system, command);
    case 'vm-ended':
      return vmEnded(system, command);
    case 'shutdown':
      return shutdown(system, command);
    case 'cleaned':
      return cleaned(system, {
        host: command.host,
        clusterid: command.clusterid,
        ticket: command.ticket,
        vmid: command.vmid,
      });
  }
}
