// What every part of one sfld shares; made once in run.ts.

import { join } from 'node:path';
import type { ControlClient, VmRef } from '@snowflock/protocol';
import type { Accel } from '@snowflock/vm';
import type { Log } from '../log.ts';
import type { CheckpointStore } from './checkpoint-store.ts';
import type { ClusterNetworks } from './cluster-networks.ts';
import type { Journal } from './journal.ts';
import type { SfldMetrics } from './metrics.ts';
import type { Peers } from './peers.ts';
import type { ReportTurn } from './report-turn.ts';
import type { Reports } from './reports.ts';
import type { Routers } from './routers.ts';
import type { ResultStore } from './result-store.ts';

export interface HostContext {
  readonly host: string;
  /** Where other hosts reach this one; memservers listen on it. */
  readonly address: string;
  /** Sockets, mounts, pids: gone after a reboot. */
  readonly runDir: string;
  /** Disks of VMs. */
  readonly stateDir: string;
  readonly accel: Accel;
  readonly forkShim: string;
  readonly masterDaemon: ControlClient;
  readonly peers: Peers;
  readonly networks: ClusterNetworks;
  readonly routers: Routers;
  readonly journal: Journal;
  readonly checkpoints: CheckpointStore;
  readonly reports: Reports;
  readonly results: ResultStore;
  readonly reportTurn: ReportTurn;
  readonly log: Log;
  readonly metrics: SfldMetrics;
}

/** CLOCK_MONOTONIC in ms: the same clock in every process of one machine, so that the times of a lab's hosts compare. */
export function monotonicMs(): number {
  return Number(process.hrtime.bigint()) / 1e6;
}

/** Where a VM's sockets are, and where its disk is. */
export function vmDirectories(
  context: { readonly runDir: string; readonly stateDir: string },
  ref: VmRef,
): { run: string; state: string } {
  const name = `${ref.clusterid}-${ref.vmid}`;
  return { run: join(context.runDir, 'v', name), state: join(context.stateDir, 'vms', name) };
}

/** Where the pages of a ticket's fork are, once all of them are on this host. */
export function pagesDirectory(context: { readonly stateDir: string }, ticket: string): string {
  return join(context.stateDir, 'vms', `t-${ticketDirectory(ticket)}`);
}

/** A ticket's directory name: its first group; unix socket paths are short. */
export function ticketDirectory(ticket: string): string {
  return ticket.slice(0, 8);
}
