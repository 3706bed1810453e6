// What sfmd and sfld say of themselves when they are asked: hosts, VMs and tickets, forks with their times, who reaches whom.

import { z } from 'zod';
import { clusterid, hostName, port, vmid } from './fields.ts';
import { ticketId, vmName, VmShape } from './vm-shape.ts';

export const VmStatus = z.enum(['preparing', 'booting', 'running', 'exited', 'lost', 'destroyed']);
export type VmStatus = z.infer<typeof VmStatus>;

/** How often and how long a VM waited for pages that were not on its host, in microseconds. */
export const PageWaits = z.object({
  count: z.int(),
  minUs: z.number(),
  medianUs: z.number(),
  p99Us: z.number(),
  maxUs: z.number(),
  sumUs: z.number(),
  /** Waits that were as long as each of PAGE_WAIT_BOUNDS_US, or shorter. Empty: an older sfld's. */
  buckets: z.array(z.int()).default([]),
});
export type PageWaits = z.infer<typeof PageWaits>;

export const VmState = z.object({
  vmid,
  status: VmStatus,
  host: hostName,
  vcpus: z.int(),
  memoryMib: z.int(),
  ip: z.string(),
  ticket: ticketId.nullable(),
  reason: z.string().nullable(),
  /** Of a running clone, when it was asked for and its host answered: bytes that came over the network on its behalf, and its waits for them. */
  fetched: z.object({ bytes: z.number(), waits: PageWaits.nullable() }).optional(),
});
export type VmState = z.infer<typeof VmState>;

export const TicketState = z.object({
  ticket: ticketId,
  /** The VM that asked for it, and may fork with it. */
  owner: vmid,
  status: z.enum(['unused', 'outstanding']),
  clones: z.array(z.object({ vmid, processors: z.int(), host: hostName })),
});
export type TicketState = z.infer<typeof TicketState>;

/** GET sfmd /v1/state; what sfstate prints (manual: dump_host_state, dump_cluster_state). */
export const SystemState = z.object({
  hosts: z.array(
    z.object({
      host: hostName,
      address: z.string().nullable(),
      sfldPort: port.nullable(),
      up: z.boolean(),
      accel: z.enum(['kvm', 'tcg']).nullable(),
      cpus: z.int(),
      cpusFree: z.int(),
      ramBytes: z.number(),
      ramFreeBytes: z.number(),
      vms: z.int(),
    }),
  ),
  clusters: z.array(
    z.object({ clusterid, shape: VmShape, vms: z.array(VmState), tickets: z.array(TicketState) }),
  ),
});
export type SystemState = z.infer<typeof SystemState>;

/** GET sfld /v1/state — what runs on this host: names of VMs, and tickets of memservers and of clone groups. */
export const HostState = z.object({
  host: hostName,
  accel: z.enum(['kvm', 'tcg']),
  masters: z.array(vmName),
  clones: z.array(vmName),
  sources: z.array(ticketId),
  groups: z.array(ticketId),
});
export type HostState = z.infer<typeof HostState>;

/** Wire traffic and faults of one memtap, as its sfld reports them. */
export const ReplicationStats = z.record(z.string(), z.unknown());

/** GET sfld /v1/forks — the last forks on this host, timed; what the demo and the bench read. All times ms unless named. */
export const ForkRecord = z.object({
  ticket: ticketId,
  clusterid,
  /** Which VM was forked. */
  vmid,
  /** CLOCK_MONOTONIC of the host in ms: the guest's call reached sfld. */
  calledAtMs: z.number(),
  redeemMs: z.number(),
  holdMs: z.number(),
  pauseMs: z.number(),
  stopMs: z.number(),
  forkMs: z.number(),
  contMs: z.number(),
  presenceMs: z.number(),
  descriptorBytes: z.int(),
  presentPages: z.int(),
  ramBytes: z.number(),
  totalMs: z.number(),
  memserverPid: z.int(),
});
export type ForkRecord = z.infer<typeof ForkRecord>;

/** GET sfld /v1/clones — the clones on this host with their launch times and what their memtap has fetched. */
export const CloneRecord = z.object({
  ticket: ticketId,
  clusterid,
  vmid,
  status: VmStatus,
  pid: z.int().nullable(),
  /** CLOCK_MONOTONIC of the host in ms; null while it has not happened. */
  descriptorAtMs: z.number().nullable(),
  loadedAtMs: z.number().nullable(),
  runningAtMs: z.number().nullable(),
  identifiedAtMs: z.number().nullable(),
  /** First call or output by a program in the clone, after clone_master returned there. */
  firstAnswerAtMs: z.number().nullable(),
  /** Bytes of pages that came over the network because this clone touched them, or their neighbours with them. */
  fetchedBytes: z.number().nullable(),
  /** Null: it has not waited, or nothing is known of it. */
  waits: PageWaits.nullable().default(null),
  /** All of its pages are on its host: it needs its parent's no more. */
  detached: z.boolean().default(false),
  /** Of the memtap that all clones of the ticket on this host share. */
  replication: ReplicationStats.nullable(),
});
export type CloneRecord = z.infer<typeof CloneRecord>;

/** POST sfld /v1/reach/listen — what whoever checks this host may try for some seconds. */
export const ReachListener = z.object({
  port,
  /** The port of the clusters' networks is open: VMs use it. */
  vxlanInUse: z.boolean(),
  /** Wall clock, ms since 1970. */
  nowMs: z.number(),
});
export type ReachListener = z.infer<typeof ReachListener>;

export const ReachPair = z.object({
  from: hostName,
  to: z.string(),
  part: z.enum(['sfmd', 'sfld', 'pages', 'vxlan']),
  state: z.enum(['ok', 'failed', 'untried']),
  reason: z.string().nullable(),
});
export type ReachPair = z.infer<typeof ReachPair>;

/** GET sfld /v1/reach — what this host (with all=1 every host) reaches of the others. */
export const ReachReport = z.object({
  pairs: z.array(ReachPair),
  /** How far the clocks of the others are ahead of this host's. */
  clocks: z.array(z.object({ host: hostName, aheadMs: z.number() })),
});
export type ReachReport = z.infer<typeof ReachReport>;
