// What every part of one sfld shares; made once in run.ts.

import type { ControlClient } from '@snowflock/protocol';
import type { Accel } from '@snowflock/vm';
import type { Log } from '../log.ts';
import type { ClusterNetworks } from './cluster-networks.ts';
import type { Peers } from './peers.ts';

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
  readonly log: Log;
}

/** CLOCK_MONOTONIC in ms: the same clock in every process of one machine, so that the times of a lab's hosts compare. */
export function monotonicMs(): number {
  return Number(process.hrtime.bigint()) / 1e6;
}

/** A ticket's directory name: its first group; unix socket paths are short. */
export function ticketDirectory(ticket: string): string {
  return ticket.slice(0, 8);
}
