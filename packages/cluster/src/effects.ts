// What the world has to be told after a command. The state already counts on it; whoever applies commands carries it out.

import type { ErrorCode, TicketGrant, VmShape } from '@snowflock/protocol';
import type { Cleanup, SystemData } from './state.ts';

export type Effect =
  | {
      readonly type: 'start-master';
      readonly clusterid: number;
      readonly host: string;
      readonly shape: VmShape;
    }
  | {
      readonly type: 'prepare-source';
      readonly clusterid: number;
      readonly ticket: string;
      readonly host: string;
    }
  | {
      readonly type: 'prepare-clones';
      readonly clusterid: number;
      readonly ticket: string;
      readonly host: string;
      readonly shape: VmShape;
      readonly diskBytes: number;
      readonly clones: readonly { readonly vmid: number; readonly vcpus: number }[];
    }
  | { readonly type: 'granted'; readonly requestId: string; readonly grant: TicketGrant }
  | {
      readonly type: 'refused';
      readonly requestId: string;
      readonly code: ErrorCode;
      readonly message: string;
    }
  | ({ readonly type: 'clean-up' } & Cleanup)
  | { readonly type: 'host-up' | 'host-down'; readonly host: string }
  | { readonly type: 'vm-ended'; readonly clusterid: number; readonly vmid: number; readonly reason: string };

/** Opens a cleanup unless it, or that of its whole cluster, is open already. */
export function openCleanup(system: SystemData, cleanup: Cleanup): Effect[] {
  const covered = system.cleanups.some(
    (open) =>
      open.host === cleanup.host &&
      open.clusterid === cleanup.clusterid &&
      (open.ticket === null || open.ticket === cleanup.ticket),
  );
  if (covered) return [];
  system.cleanups.push(cleanup);
  return [{ type: 'clean-up', ...cleanup }];
}
