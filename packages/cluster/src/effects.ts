// What the world has to be told after a command. The state already counts on it; whoever applies commands carries it out.

import type { ErrorCode, TicketGrant, VmShape } from '@snowflock/protocol';
import { sourceHostOf } from './lookup.ts';
import type { CheckpointUse, Cleanup, Cluster, SystemData, Ticket, Vm } from './state.ts';

export type Effect =
  | {
      readonly type: 'start-master';
      readonly clusterid: number;
      readonly host: string;
      readonly shape: VmShape;
      /** Null: it boots. */
      readonly checkpoint: CheckpointUse | null;
      /** Of the checkpoint. */
      readonly diskBytes: number;
    }
  | {
      readonly type: 'prepare-source';
      readonly clusterid: number;
      /** Of the VM that will be forked. */
      readonly vmid: number;
      readonly ticket: string;
      readonly host: string;
      /** Where its clones are placed. */
      readonly targets: readonly string[];
    }
  | {
      readonly type: 'prepare-clones';
      readonly clusterid: number;
      readonly ticket: string;
      readonly host: string;
      readonly shape: VmShape;
      readonly diskBytes: number;
      /** Of the VM that will be forked, where the pages will come from. */
      readonly parentHost: string;
      /** All hosts that clones of the ticket are placed on. */
      readonly targets: readonly string[];
      readonly clones: readonly { readonly vmid: number; readonly vcpus: number }[];
    }
  | {
      readonly type: 'granted';
      readonly requestId: string;
      readonly clusterid: number;
      readonly grant: TicketGrant;
    }
  | {
      readonly type: 'refused';
      readonly requestId: string;
      readonly code: ErrorCode;
      readonly message: string;
    }
  | ({ readonly type: 'clean-up' } & Cleanup)
  | { readonly type: 'host-up' | 'host-down'; readonly host: string }
  | {
      readonly type: 'vm-ended';
      readonly clusterid: number;
      readonly vmid: number;
      readonly host: string;
      readonly ticket: string | null;
      readonly how: 'exited' | 'lost';
      readonly reason: string;
    }
  | {
      readonly type: 'write-checkpoint';
      readonly clusterid: number;
      readonly vmid: number;
      readonly name: string;
      readonly id: string;
      readonly host: string;
      readonly description: string;
    }
  | {
      readonly type: 'migrate';
      readonly clusterid: number;
      readonly vmid: number;
      readonly vcpus: number;
      /** What its memory is fetched under. */
      readonly ticket: string;
      readonly from: string;
      readonly to: string;
      readonly shape: VmShape;
      readonly diskBytes: number;
      /** What it was itself cloned with, and where it returns to; null: it is a master VM. */
      readonly origin: { readonly ticket: string; readonly parentHost: string } | null;
    }
  // Only to be told:
  | {
      readonly type: 'vm-migrated';
      readonly clusterid: number;
      readonly vmid: number;
      readonly from: string;
      readonly to: string;
    }
  | {
      readonly type: 'checkpoint-ready';
      readonly name: string;
      readonly host: string;
      readonly sizeBytes: number;
    }
  | {
      readonly type: 'checkpoint-failed';
      readonly name: string;
      readonly id: string;
      readonly host: string;
      readonly reason: string;
    }
  | { readonly type: 'checkpoint-deleted'; readonly name: string; readonly host: string }
  | { readonly type: 'cluster-started'; readonly clusterid: number; readonly host: string }
  | { readonly type: 'cluster-ended'; readonly clusterid: number }
  | { readonly type: 'fork-begun'; readonly clusterid: number; readonly ticket: string }
  | {
      readonly type: 'clone-running';
      readonly clusterid: number;
      readonly ticket: string;
      readonly vmid: number;
      readonly host: string;
    }
  | {
      readonly type: 'ticket-ended';
      readonly clusterid: number;
      readonly ticket: string;
      readonly how: 'merged' | 'disposed';
    };

/** Of a VM that has just ended. */
export function vmEndedEffect({ clusterid }: Cluster, vm: Vm): Effect {
  const { vmid, host, ticket, reason } = vm;
  const how = vm.status === 'exited' ? 'exited' : 'lost';
  return { type: 'vm-ended', clusterid, vmid, host, ticket, how, reason: reason ?? '' };
}

export function prepareSource(cluster: Cluster, ticket: Ticket): Effect {
  const { clusterid } = cluster;
  const host = sourceHostOf(cluster, ticket);
  const targets = targetsOf(cluster, ticket);
  return { type: 'prepare-source', clusterid, vmid: ticket.owner, ticket: ticket.ticket, host, targets };
}

function targetsOf({ vms }: Cluster, ticket: Ticket): string[] {
  return [...new Set(ticket.vmids.flatMap((vmid) => vms[vmid]?.host ?? []))].sort();
}

export function prepareClones(
  cluster: Cluster,
  { ticket, ...at }: { ticket: Ticket; host: string; clones: readonly { vmid: number; vcpus: number }[] },
): Effect {
  const { clusterid, shape, diskBytes } = cluster;
  return {
    type: 'prepare-clones',
    clusterid,
    shape,
    diskBytes,
    parentHost: sourceHostOf(cluster, ticket),
    targets: targetsOf(cluster, ticket),
    ticket: ticket.ticket,
    ...at,
  };
}

/** Whether what `wide` destroys includes what `narrow` does. */
export function covers(system: SystemData, wide: Cleanup, narrow: Cleanup): boolean {
  if (wide.ticket === null && wide.vmid === null) return true;
  if (wide.vmid !== null) return wide.vmid === narrow.vmid;
  const ticketOf = (vmid: number): string | null =>
    system.clusters[narrow.clusterid]?.vms[vmid]?.ticket ?? null;
  return wide.ticket === (narrow.vmid === null ? narrow.ticket : ticketOf(narrow.vmid));
}

/** Opens a cleanup unless it, or that of its whole cluster, is open already. */
export function openCleanup(system: SystemData, cleanup: Cleanup): Effect[] {
  const covered = system.cleanups.some(
    (open) =>
      open.host === cleanup.host && open.clusterid === cleanup.clusterid && covers(system, open, cleanup),
  );
  if (covered) return [];
  system.cleanups.push(cleanup);
  return [{ type: 'clean-up', ...cleanup }];
}
