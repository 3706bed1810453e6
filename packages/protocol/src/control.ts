// The control API: what sfmd and sfld say to each other, and what local commands say to sfld. HTTP with JSON bodies,
// except where a body is named binary. Every body is parsed with these schemas on both sides.
//
// Listeners:
//   sfmd  TCP, mutual TLS (cluster CA)            paths under /v1, below as `sfmd`
//   sfld  TCP, mutual TLS (cluster CA)            paths under /v1, below as `sfld`
//   sfld  unix socket, file permissions (root)    the same, and /v1/master/* forwarded to sfmd's /v1/*

import { z } from 'zod';

/** Limits that the schemas enforce; each bounds what one message can make a daemon allocate. */
export const CLONES_PER_TICKET_MAX = 1024;
export const VCPUS_MAX = 64;
export const MEMORY_MIB_MIN = 32;
export const MEMORY_MIB_MAX = 1024 * 1024;

const hostName = z.string().regex(/^[A-Za-z0-9][A-Za-z0-9.:-]{0,252}$/);
export const ticketId = z.uuid();
const port = z.int().min(1).max(65535);
const vmid = z.int().min(0).max(65533);
const clusterid = z.int().min(0).max(0xfffffe);

/** `clusterid:vmid`, how people name a VM. */
export const vmName = z.string().regex(/^\d+:\d+$/);

// ---- sfmd: hosts --------------------------------------------------------------------------------------------------

/** PUT sfmd /v1/hosts/:host — a host's sfld reports itself, at start and every few seconds. */
export const HostReport = z.object({
  /** Address that other hosts reach this one's sfld and memservers at. */
  address: z.string(),
  sfldPort: port,
  accel: z.enum(['kvm', 'tcg']),
  /** Of this sfld process: a new value says that the VMs of the one before are gone. Absent: nothing is said. */
  instance: z.uuid().optional(),
});
export type HostReport = z.infer<typeof HostReport>;

/** Answer to HostReport: every host of the system, for the overlay network. */
export const HostReportReply = z.object({
  hosts: z.array(z.object({ host: hostName, address: z.string(), up: z.boolean() })),
});
export type HostReportReply = z.infer<typeof HostReportReply>;

// ---- clusters -----------------------------------------------------------------------------------------------------

/** What every VM of a cluster looks like; the master VM's seed configuration (manual section 4, sfseed). */
export const VmShape = z.object({
  /** Name of a built image, or the absolute path of a disk image. */
  diskImage: z.string().min(1).max(4096),
  vcpus: z.int().min(1).max(VCPUS_MAX),
  memoryMib: z.int().min(MEMORY_MIB_MIN).max(MEMORY_MIB_MAX),
});
export type VmShape = z.infer<typeof VmShape>;

/** POST sfmd /v1/clusters with a VmShape: places and starts a master VM. */
export const SeedReply = z.object({ clusterid, vmid, host: hostName, ip: z.string() });
export type SeedReply = z.infer<typeof SeedReply>;

/** POST sfld /v1/vms — sfmd asks a host to start a master VM. */
export const StartMaster = z.object({ clusterid, shape: VmShape });
export type StartMaster = z.infer<typeof StartMaster>;

/** Answer to StartMaster: the VM boots. Its disk's size, as the guest sees it, is what clones elsewhere are prepared with; 0: none. */
export const MasterStarted = z.object({ diskBytes: z.number().int().min(0) });
export type MasterStarted = z.infer<typeof MasterStarted>;

// ---- tickets ------------------------------------------------------------------------------------------------------

/** POST sfmd /v1/clusters/:clusterid/tickets (manual section 5, request_clone_ticket). */
export const TicketRequest = z.object({
  nclones: z.int().min(1).max(CLONES_PER_TICKET_MAX),
  /** nclones counts processors, not VMs. */
  procs: z.boolean(),
  /** Least acceptable grant; below 0: all or whatever there is, see docs. */
  min: z.int().min(-1).max(CLONES_PER_TICKET_MAX),
  /** Wait until the grant is possible. */
  block: z.boolean(),
});
export type TicketRequest = z.infer<typeof TicketRequest>;

/** `allowed` counts what was asked for: VMs, or processors. ticket is null exactly when allowed is 0. */
export const TicketGrant = z.object({ ticket: ticketId.nullable(), allowed: z.int().min(0) });
export type TicketGrant = z.infer<typeof TicketGrant>;

/** GET sfmd /v1/clusters/:clusterid/tickets */
export const TicketList = z.object({ unused: z.array(ticketId), outstanding: z.array(ticketId) });
export type TicketList = z.infer<typeof TicketList>;

/** GET sfmd /v1/clusters/:clusterid/tickets/:ticket */
export const TicketInfo = z.object({
  ticket: ticketId,
  clones: z.array(z.object({ vmid, processors: z.int().min(1) })),
});
export type TicketInfo = z.infer<typeof TicketInfo>;

/** One clone of a ticket and where it will run. */
export const Placement = z.object({
  vmid,
  vcpus: z.int().min(1),
  host: hostName,
  address: z.string(),
  sfldPort: port,
});
export type Placement = z.infer<typeof Placement>;

/** POST sfmd /v1/clusters/:clusterid/tickets/:ticket/redeem — once per ticket, by the master VM's host. */
export const RedeemReply = z.object({
  clones: z.array(Placement),
  /** Clones of the ticket that cannot be launched, because their host could not prepare them. */
  failed: z.array(z.object({ vmid, reason: z.string() })).default([]),
});
export type RedeemReply = z.infer<typeof RedeemReply>;

/** POST sfmd /v1/clusters/:clusterid/tickets/:ticket/launched — which of the redeemed clones run. */
export const LaunchReport = z.object({
  clones: z.array(z.object({ vmid, ok: z.boolean(), reason: z.string().optional() })),
});
export type LaunchReport = z.infer<typeof LaunchReport>;

// Further, all POST on sfmd with empty bodies and empty replies:
//   /v1/clusters/:clusterid/tickets/:ticket/merge    destroy its clones, free its resources (also when some are lost)
//   /v1/clusters/:clusterid/merge                    the same for every outstanding ticket, and dispose unused ones
//   /v1/clusters/:clusterid/tickets/:ticket/join     answers when all clones have exited and are destroyed
// DELETE /v1/clusters/:clusterid/tickets/:ticket     dispose (unused only)
// DELETE /v1/clusters/:clusterid[?force=1]           shut down; refused with tickets outstanding unless forced
//                               [?by=guest]          the same, but leaves the master VM to power itself off

/** POST sfmd /v1/clusters/:clusterid/vms/:vmid/ended — a VM is gone: it called ic_exit, died, or was powered off. */
export const VmEnded = z.object({
  how: z.enum(['exited', 'lost', 'powered-off']),
  reason: z.string().max(4096),
});
export type VmEnded = z.infer<typeof VmEnded>;

// ---- sfld: the fork -----------------------------------------------------------------------------------------------

/** POST sfld /v1/sources — the master VM's host gets a memserver ready for this ticket. */
export const PrepareSource = z.object({ clusterid, ticket: ticketId });
export type PrepareSource = z.infer<typeof PrepareSource>;

/** POST sfld /v1/tickets — a target host starts empty VMs for this ticket. */
export const PrepareClones = z.object({
  clusterid,
  ticket: ticketId,
  shape: VmShape,
  /** As MasterStarted told; the disk itself is fetched from the parent, a clone's host needs no image. */
  diskBytes: z.number().int().min(0),
  clones: z.array(z.object({ vmid: vmid.min(1), vcpus: z.int().min(1).max(VCPUS_MAX) })).min(1),
});
export type PrepareClones = z.infer<typeof PrepareClones>;

/** POST sfld /v1/tickets/:ticket/launch — body: binary descriptor (descriptor.ts). Answers when each clone runs or has failed. */
export const LaunchReply = LaunchReport;
export type LaunchReply = LaunchReport;

// DELETE sfld /v1/tickets/:ticket            every clone, memtap and memserver of the ticket on this host goes; idempotent
// DELETE sfld /v1/clusters/:clusterid        everything of the cluster on this host goes; idempotent
// GET    sfld /v1/vms/:vm/exec               Upgrade: snowflock-exec; then guest-channel exec frames in both directions
// GET    sfld /v1/vms/:vm/console            Upgrade: snowflock-console; then raw bytes

// ---- state --------------------------------------------------------------------------------------------------------

export const VmStatus = z.enum(['preparing', 'booting', 'running', 'exited', 'lost', 'destroyed']);
export type VmStatus = z.infer<typeof VmStatus>;

export const VmState = z.object({
  vmid,
  status: VmStatus,
  host: hostName,
  vcpus: z.int(),
  memoryMib: z.int(),
  ip: z.string(),
  ticket: ticketId.nullable(),
  reason: z.string().nullable(),
});
export type VmState = z.infer<typeof VmState>;

export const TicketState = z.object({
  ticket: ticketId,
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
  /** Of the memtap that all clones of the ticket on this host share. */
  replication: ReplicationStats.nullable(),
});
export type CloneRecord = z.infer<typeof CloneRecord>;

/** Body of every answer with a status of 400 or more. */
export const ErrorReply = z.object({ error: z.object({ code: z.string(), message: z.string() }) });
export type ErrorReply = z.infer<typeof ErrorReply>;
