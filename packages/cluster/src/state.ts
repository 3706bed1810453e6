// What sfmd knows, as plain data: it survives JSON, and nothing in it depends on a process. What lasts is stored row by row
// (rows.ts), so nested values are replaced, never changed; times are monotonic, of this sfmd, and begin anew with each.
//
//   ticket   (asked) ─▶ waiting in the queue ─▶ unused ──redeem──▶ outstanding ──merge, join──▶ past: merged
//                  └──────────────────────────▶   └────dispose────────────────────────────────▶ past: disposed
//   VM       preparing ─▶ booting ─▶ running ─▶ exited │ lost ─▶ destroyed ─▶ (forgotten)
//   host     down ◀── reports ──▶ up
//
// VMs and tickets make a tree: a ticket has an owner, the VM that asked for it, and each clone its ticket. What becomes of a VM's
// tickets when it ends: its clones have nobody to return to, so they end with it, and theirs with them.
//
// A VM holds its processors and memory from the grant until its host has confirmed that it is gone: a promise is never
// made on the assumption that a silent host has cleaned up. Until then it is 'destroyed' with a Cleanup to its host open.

import type { HeldCheckpoint, TicketRequest, VmShape, VmStatus } from '@snowflock/protocol';
import { DEFAULT_LIMITS, type Limits } from './limits.ts';

export const CLUSTERID_MAX = 0xfffffe;
/** Tickets of a cluster that are remembered after their end, to tell 'used' from 'never existed'. */
export const PAST_TICKETS_MAX = 512;
/** An sfld asks again for 30 s after an answer got lost; what nobody has asked for after twice that is given back. */
export const UNCLAIMED_AFTER_MS = 60_000;
/** From the redemption of a ticket to the report of its launch: sfld launches for at most 60 s, and tells for 30 s more. */
export const LAUNCH_REPORT_AFTER_MS = 120_000;
/** A VM that runs as far as sfmd knows, and that its host's reports have not listed for so long, is lost. Longer than a report may be under way. */
export const VM_MISSING_AFTER_MS = 10_000;

export interface Host {
  readonly host: string;
  cpus: number;
  ramBytes: number;
  /** What of it SnowFlock may use at the moment, when it is shared with others; null: all. */
  lent: { readonly cpus: number; readonly ramBytes: number } | null;
  /** Its configuration was made smaller than what it has promised; nothing is taken back. */
  shrunk: boolean;
  /** From its reports; null before the first. */
  address: string | null;
  sfldPort: number | null;
  accel: 'kvm' | 'tcg' | null;
  /** Of the running sfld; a new one knows nothing of what the old one had under way. */
  instance: string | null;
  up: boolean;
  reportedAtMs: number | null;
}

/** What a clone has left behind, that was not lost. */
export interface Left {
  readonly how: 'exited' | 'ended';
  /** Of ic_exit; null unless exited. */
  readonly status: number | null;
  /** On the parent's host. */
  readonly resultBytes: number;
}

export interface Vm {
  readonly vmid: number;
  /** Changes when it is migrated. */
  host: string;
  readonly vcpus: number;
  readonly memoryMib: number;
  readonly ticket: string | null;
  status: VmStatus;
  reason: string | null;
  /** Null until it has exited or was ended, and for one that was lost. */
  left: Left | null;
  /** From its fork to its end; null: it runs, or never did. */
  ranMs: number | null;
  /** Lost only because its host stopped reporting; a master VM is back when its host is. */
  unreachable: boolean;
  /** Its host has confirmed that it is gone: it holds nothing any more, and stays for its ticket's sake. */
  freed: boolean;
  /** Since when its host's reports do not list it, though it should run there; null: they do. */
  missingSinceMs: number | null;
}

export interface Ticket {
  readonly ticket: string;
  /** vmid of the VM that asked for it: who forks with it, and whom its clones return to. */
  readonly owner: number;
  /** The request that it answers, and how much of it. */
  readonly requestId: string;
  readonly allowed: number;
  /** The grant has reached whoever asked. */
  delivered: boolean;
  /** Of clone_master; null: unused, or redeemed by somebody who gave no name. */
  redemption: string | null;
  /** The owner's host has told which clones run. */
  launched: boolean;
  /** Since its grant, or redemption, or the start of this sfmd. */
  sinceMs: number;
  /** When it was redeemed, Unix time as unixTime() has it; null: not yet. */
  forkedUnixMs: number | null;
  readonly vmids: readonly number[];
  /** Hosts whose answer to the preparation is not in; of the source: the owner's host. */
  preparing: readonly string[];
  sourcePreparing: boolean;
  sourceError: string | null;
  status: 'unused' | 'outstanding';
}

export interface PastTicket {
  readonly ticket: string;
  readonly how: 'merged' | 'disposed';
}

/** Where a ticket's frozen image is, or may be: from the grant until that host has confirmed the ticket's end. */
export interface FrozenImage {
  readonly ticket: string;
  readonly host: string;
}

export interface Checkpoint extends HeldCheckpoint {
  readonly host: string;
  status: 'writing' | 'ready' | 'missing' | 'deleting';
}

/**
 * A VM on its way to another host, and what it has left behind:
 *
 *   moving ──it runs there──▶ moved: its memory is fetched ──all is there──▶ ending ──confirmed──▶ (forgotten)
 *      └──it stays────────────────────────────────────────────────────────────▶ ending
 *
 * While it is moving it holds what it needs on both hosts; then, on the one that it has left, its memory.
 */
export interface Migration {
  /** What its memory is fetched under. */
  readonly ticket: string;
  readonly vmid: number;
  readonly vcpus: number;
  readonly memoryMib: number;
  readonly from: string;
  readonly to: string;
  moved: boolean;
  ending: boolean;
  /** Hosts that hold something for it and have not confirmed its end. */
  held: readonly string[];
}

/** Which checkpoint a cluster is fed from. */
export interface CheckpointUse {
  readonly name: string;
  readonly id: string;
  readonly host: string;
  /** What the pages are fetched under. */
  readonly ticket: string;
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
  /** By ticket. */
  readonly frozen: Record<string, FrozenImage>;
  /** By ticket. */
  readonly migrations: Record<string, Migration>;
  /** What its master VM was started from and is fed from; null: an image. */
  readonly checkpoint: CheckpointUse | null;
  past: readonly PastTicket[];
}

/** A host still has to destroy what it has of a ticket, of one VM, or (both null) of the whole cluster. */
export interface Cleanup {
  readonly host: string;
  readonly clusterid: number;
  readonly ticket: string | null;
  readonly vmid: number | null;
}

/** Which ticket. */
export interface TicketRef {
  readonly clusterid: number;
  readonly ticket: string;
}

/** Which ticket, and who asks: the vmid of a VM, which may only ask of its own; absent: an operator, or a host by itself. */
export interface TicketAsk extends TicketRef {
  readonly by?: number | undefined;
}

export interface Waiting {
  readonly requestId: string;
  readonly clusterid: number;
  /** vmid of the VM that asks. */
  readonly owner: number;
  readonly request: TicketRequest;
  /** Place in the line. */
  readonly order: number;
  /** Since sfmd was restarted, until whoever waits has asked again; null: somebody waits. */
  unclaimedSinceMs: number | null;
}

export interface SystemData {
  readonly hosts: Record<string, Host>;
  readonly clusters: Record<string, Cluster>;
  readonly checkpoints: Record<string, Checkpoint>;
  readonly queue: Waiting[];
  readonly cleanups: Cleanup[];
  nextClusterid: number;
  /** As configured. */
  limits: Limits;
  /** How many sfmds have had this state. */
  starts: number;
  /** Of the last report or tick. */
  nowMs: number;
  /** Unix time at `nowMs` 0. */
  unixOffsetMs: number;
}

export interface HostCapacity {
  readonly host: string;
  readonly cpus: number;
  readonly ramBytes: number;
}

export function createSystem(options: {
  hosts: readonly HostCapacity[];
  clusterid: number;
  limits?: Limits;
}): SystemData {
  const hosts: Record<string, Host> = {};
  for (const capacity of options.hosts) hosts[capacity.host] = newHost(capacity);
  return {
    hosts,
    clusters: {},
    checkpoints: {},
    queue: [],
    cleanups: [],
    nextClusterid: options.clusterid,
    limits: options.limits ?? DEFAULT_LIMITS,
    starts: 0,
    nowMs: 0,
    unixOffsetMs: 0,
  };
}

export function newHost({ host, cpus, ramBytes }: HostCapacity): Host {
  return {
    ...{
      host,
      cpus,
      ramBytes,
      lent: null,
      shrunk: false,
      address: null,
      sfldPort: null,
      accel: null,
      instance: null,
    },
    ...{ up: false, reportedAtMs: null },
  };
}

/** What VMs may have of a host now. */
export function capacityOf({ cpus, ramBytes, lent }: Host): { cpus: number; ramBytes: number } {
  if (lent === null) return { cpus, ramBytes };
  return { cpus: Math.min(cpus, lent.cpus), ramBytes: Math.min(ramBytes, lent.ramBytes) };
}

export function vmRamBytes(vm: { memoryMib: number }): number {
  return vm.memoryMib * (1 << 20);
}

export function isEnded(vm: Vm): boolean {
  return vm.status === 'exited' || vm.status === 'lost' || vm.status === 'destroyed';
}

/**
 * For what has to be known across restarts of sfmd. Between them it goes on evenly, whatever is done to the machine's clock; what it is set by
 * while sfmd does not run, or is away from true while it starts, counts as time.
 */
export function unixTime({ nowMs, unixOffsetMs }: Pick<SystemData, 'nowMs' | 'unixOffsetMs'>): number {
  return Math.round(nowMs + unixOffsetMs);
}

/** How long a clone has run: from its fork on, until now or its end. */
export function ranMs(cluster: Cluster, vm: Vm, nowUnixMs: number): number {
  const forkedUnixMs = cluster.tickets[vm.ticket ?? '']?.forkedUnixMs ?? null;
  return vm.ranMs ?? (forkedUnixMs === null ? 0 : Math.max(0, nowUnixMs - forkedUnixMs));
}

export function vmsOf(cluster: Cluster): Vm[] {
  return Object.values(cluster.vms);
}

export function clonesOf(cluster: Cluster, ticket: Ticket): Vm[] {
  return ticket.vmids.flatMap((vmid) => cluster.vms[vmid] ?? []);
}

export function ticketsOf(cluster: Cluster, vm: Vm): Ticket[] {
  return Object.values(cluster.tickets).filter((ticket) => ticket.owner === vm.vmid);
}
