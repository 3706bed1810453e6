// What sfmd knows, as plain data: it survives JSON, and nothing in it depends on a process.
//
//   ticket   (asked) ─▶ waiting in the queue ─▶ unused ──redeem──▶ outstanding ──merge, join──▶ past: merged
//                  └──────────────────────────▶   └────dispose────────────────────────────────▶ past: disposed
//   VM       preparing ─▶ booting ─▶ running ─▶ exited │ lost ─▶ destroyed ─▶ (forgotten)
//   host     down ◀── reports ──▶ up
//
// A VM holds its processors and memory from the grant until its host has confirmed that it is gone: a promise is never
// made on the assumption that a silent host has cleaned up. Until then it is 'destroyed' with a Cleanup to its host open.

import type { TicketRequest, VmShape, VmStatus } from '@snowflock/protocol';

/** Highest vmid that has an address (protocol: addresses.ts). */
export const VMID_MAX = 65533;
export const CLUSTERID_MAX = 0xfffffe;
/** Blocked ticket requests in all; each holds a connection of its host. */
export const QUEUE_MAX = 1024;
/** Tickets of a cluster that are remembered after their end, to tell 'used' from 'never existed'. */
export const PAST_TICKETS_MAX = 1024;
/** Tickets that one cluster may hold at a time. */
export const TICKETS_PER_CLUSTER_MAX = 1024;
/** A host reports every 2 s; after four missed reports it counts as down. */
export const HOST_DOWN_AFTER_MS = 8000;

export interface Host {
  readonly host: string;
  readonly cpus: number;
  readonly ramBytes: number;
  /** From its reports; null before the first. */
  address: string | null;
  sfldPort: number | null;
  accel: 'kvm' | 'tcg' | null;
  /** Of the running sfld; a new one has none of the old one's VMs. */
  instance: string | null;
  up: boolean;
  reportedAtMs: number | null;
}

export interface Vm {
  readonly vmid: number;
  readonly host: string;
  readonly vcpus: number;
  readonly memoryMib: number;
  readonly ticket: string | null;
  status: VmStatus;
  reason: string | null;
  /** Lost only because its host stopped reporting; a master VM is back when its host is. */
  unreachable: boolean;
}

export interface Ticket {
  readonly ticket: string;
  readonly vmids: readonly number[];
  /** Hosts whose answer to the preparation is not in; of the source: the master VM's host. */
  readonly preparing: string[];
  sourcePreparing: boolean;
  sourceError: string | null;
  status: 'unused' | 'outstanding';
}

export interface PastTicket {
  readonly ticket: string;
  readonly how: 'merged' | 'disposed';
}

export interface Cluster {
  readonly clusterid: number;
  readonly shape: VmShape;
  /** Size of the master VM's disk; 0 until it is started, and without a disk. */
  diskBytes: number;
  nextVmid: number;
  /** Shutting down: no new tickets; forgotten when the last host has confirmed. */
  closing: boolean;
  readonly vms: Record<string, Vm>;
  readonly tickets: Record<string, Ticket>;
  readonly past: PastTicket[];
}

/** A host still has to destroy what it has of a ticket, or of the whole cluster (ticket null). */
export interface Cleanup {
  readonly host: string;
  readonly clusterid: number;
  readonly ticket: string | null;
}

/** Which ticket. */
export interface TicketRef {
  readonly clusterid: number;
  readonly ticket: string;
}

export interface Waiting {
  readonly requestId: string;
  readonly clusterid: number;
  readonly request: TicketRequest;
}

export interface SystemData {
  readonly hosts: Record<string, Host>;
  readonly clusters: Record<string, Cluster>;
  readonly queue: Waiting[];
  readonly cleanups: Cleanup[];
  nextClusterid: number;
}

export interface HostCapacity {
  readonly host: string;
  readonly cpus: number;
  readonly ramBytes: number;
}

export function createSystem(options: { hosts: readonly HostCapacity[]; clusterid: number }): SystemData {
  const hosts: Record<string, Host> = {};
  for (const { host, cpus, ramBytes } of options.hosts)
    hosts[host] = {
      ...{ host, cpus, ramBytes, address: null, sfldPort: null, accel: null, instance: null },
      ...{ up: false, reportedAtMs: null },
    };
  return { hosts, clusters: {}, queue: [], cleanups: [], nextClusterid: options.clusterid };
}

export function vmRamBytes(vm: { memoryMib: number }): number {
  return vm.memoryMib * (1 << 20);
}

export function isEnded(vm: Vm): boolean {
  return vm.status === 'exited' || vm.status === 'lost' || vm.status === 'destroyed';
}

export function vmsOf(cluster: Cluster): Vm[] {
  return Object.values(cluster.vms);
}

export function clonesOf(cluster: Cluster, ticket: Ticket): Vm[] {
  return ticket.vmids.flatMap((vmid) => cluster.vms[vmid] ?? []);
}
