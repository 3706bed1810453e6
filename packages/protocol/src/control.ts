// The control API: what sfmd and sfld say to each other, and what local commands say to sfld. HTTP with JSON bodies,
// except where a body is named binary. Every body is parsed with these schemas on both sides.
//
// Listeners:
//   sfmd  TCP, mutual TLS (cluster CA)            paths under /v1, below as `sfmd`
//   sfld  TCP, mutual TLS (cluster CA)            paths under /v1, below as `sfld`
//   sfld  unix socket, file permissions (root)    the same, and /v1/master/* forwarded to sfmd's /v1/*

import { z } from 'zod';
import { clusterid, hostName, port, vmid } from './fields.ts';
import { networkPolicy, RouterReport } from './network.ts';
import { CHECKPOINTS_PER_HOST_MAX, HeldCheckpoint } from './checkpoint.ts';
import { ticketId, VCPUS_MAX, vmName, VmShape } from './vm-shape.ts';

export { hostName } from './fields.ts';
export * from './state.ts';
export * from './vm-shape.ts';

/** Bounds what one message can make a daemon allocate. */
export const CLONES_PER_TICKET_MAX = 1024;

/** What a clone exits with; as wide as C's int. */
export const exitStatus = z.int32();
/** Bytes of one result: what the guest channel can announce. */
export const RESULT_BYTES_MAX = 0xffffffff;
const resultBytes = z.int().min(0).max(RESULT_BYTES_MAX);

/** VMs that one host's report may name; bounds the report far below what a body may have. */
export const VMS_PER_REPORT_MAX = 16_384;

// ---- sfmd: hosts --------------------------------------------------------------------------------------------------

/** PUT sfmd /v1/hosts/:host — a host's sfld reports itself, at start and every few seconds. */
export const HostReport = z.object({
  /** Address that other hosts reach this one's sfld and memservers at. */
  address: z.string(),
  sfldPort: port,
  accel: z.enum(['kvm', 'tcg']),
  /**
   * Of this sfld process. A new value says that nothing is under way any more that the one before had begun, and without
   * `vms` also that its VMs are gone. Absent: nothing is said.
   */
  instance: z.uuid().optional(),
  /**
   * Every VM that this host has at this moment, those included that wait for their descriptor or are being adopted. Not
   * reported before it is complete: of a new instance, what is not listed is lost at once. Absent: nothing is said.
   */
  vms: z.array(vmName).max(VMS_PER_REPORT_MAX).optional(),
  /** Checkpoints that are whole on its disk. Absent: nothing is said. */
  checkpoints: z.array(HeldCheckpoint).max(CHECKPOINTS_PER_HOST_MAX).optional(),
  /** Of the clusters whose master VM is here. Absent: nothing is said. */
  routers: z.array(RouterReport).max(VMS_PER_REPORT_MAX).optional(),
});
export type HostReport = z.infer<typeof HostReport>;

/** Answer to HostReport: every host of the system, for the overlay network, and whom to refuse. */
export const HostReportReply = z.object({
  hosts: z.array(z.object({ host: hostName, address: z.string(), up: z.boolean() })),
  /** Serial numbers of all revoked certificates that have not expired; absent: sfmd has no authority, nothing is said. */
  revoked: z.array(z.string().max(64)).optional(),
  /** Absent: of an older sfmd; nothing is reached. */
  network: networkPolicy.optional(),
  /** VMs with exposed ports that are not there any more. */
  gone: z.array(vmName).optional(),
});
export type HostReportReply = z.infer<typeof HostReportReply>;

// ---- clusters -----------------------------------------------------------------------------------------------------

/** POST sfmd /v1/clusters with a SeedRequest (checkpoint.ts): places and starts a master VM. */
export const SeedReply = z.object({ clusterid, vmid, host: hostName, ip: z.string() });
export type SeedReply = z.infer<typeof SeedReply>;

/** POST sfld /v1/vms — sfmd asks a host to start a master VM. */
export const StartMaster = z.object({
  clusterid,
  shape: VmShape,
  /** What it is started from in place of booting, and whose sfld is asked for the descriptor. */
  checkpoint: z
    .object({
      name: z.string(),
      ticket: ticketId,
      diskBytes: z.int().min(0),
      source: z.object({ host: hostName, address: z.string(), sfldPort: port }),
    })
    .nullable()
    .default(null),
});
export type StartMaster = z.infer<typeof StartMaster>;

/** Answer to StartMaster: the VM boots. Its disk's size, as the guest sees it, is what clones elsewhere are prepared with; 0: none. */
export const MasterStarted = z.object({ diskBytes: z.number().int().min(0) });
export type MasterStarted = z.infer<typeof MasterStarted>;

// ---- tickets ------------------------------------------------------------------------------------------------------

/**
 * Query of every request that sfld makes for a guest: the VM that asks, known by its channel. It may only ask of its own tickets
 * ('not-owner'). Absent: an operator asks, of any ticket; a new one is then the master VM's.
 */
export const AskingVm = z.object({
  vm: z
    .string()
    .regex(/^\d{1,5}$/, 'must be a vmid')
    .transform(Number)
    .optional(),
});
export type AskingVm = z.infer<typeof AskingVm>;

/** POST sfmd /v1/clusters/:clusterid/tickets (manual section 5, request_clone_ticket). */
export const TicketRequest = z.object({
  nclones: z.int().min(1).max(CLONES_PER_TICKET_MAX),
  /** nclones counts processors, not VMs. */
  procs: z.boolean(),
  /** Least acceptable grant; below 0: all or whatever there is, see docs. */
  min: z.int().min(-1).max(CLONES_PER_TICKET_MAX),
  /** Wait until the grant is possible. */
  block: z.boolean(),
  /** Names this request: asked again with the same one (its answer got lost), it is the same request and gets the same ticket. */
  requestId: z.uuid().optional(),
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

/** POST sfmd /v1/clusters/:clusterid/tickets/:ticket/redeem — once per ticket, by its owner's host. */
export const RedeemRequest = z
  .object({
    /** Names this redemption: asked again with the same one, it gets the same answer; with another one it is refused. */
    redemption: z.uuid().optional(),
  })
  .default({});
export type RedeemRequest = z.infer<typeof RedeemRequest>;

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

/** POST sfmd /v1/clusters/:clusterid/tickets/:ticket/wait — each null: no such limit. The ticket stays outstanding. */
export const WaitRequest = z.object({
  /** So many clones have exited. */
  count: z.int().min(1).nullable().default(null),
  /** Since this request. */
  deadlineMs: z.number().min(0).nullable().default(null),
  /** That its clones have run together since the fork. */
  budgetMs: z.number().min(0).nullable().default(null),
  /** Of results together. */
  budgetBytes: z.number().min(0).nullable().default(null),
});
export type WaitRequest = z.infer<typeof WaitRequest>;

/** How a clone ended: by ic_exit; by a wait that had enough, or its guest powered itself off; or otherwise. */
export const Outcome = z.object({
  vmid,
  how: z.enum(['exited', 'ended', 'lost']),
  /** Of ic_exit; null unless exited. */
  status: exitStatus.nullable(),
  reason: z.string(),
  resultBytes,
});
export type Outcome = z.infer<typeof Outcome>;

/** Answer to WaitRequest: all clones of the ticket, by ascending vmid. */
export const WaitReply = z.object({ clones: z.array(Outcome) });
export type WaitReply = z.infer<typeof WaitReply>;

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
  /** Of ic_exit; absent: 0. */
  status: exitStatus.optional(),
  /** That lie on the parent's host; absent: none. */
  resultBytes: resultBytes.optional(),
});
export type VmEnded = z.infer<typeof VmEnded>;

// ---- sfld: the fork -----------------------------------------------------------------------------------------------

/** Name or address of a host's interface for pages that go to many hosts at once; absent: pages go by unicast (docs/mcdist.md). */
const multicastHost = hostName.optional();

/**
 * POST sfld /v1/multicast-tries — the hosts of a system listen, and one of them sends, so that sfmd knows whom multicast reaches. Answers
 * when `listenMs` are over.
 */
export const TryMulticast = z.object({
  /** Of this try alone. */
  keyHex: z.string().regex(/^[0-9a-f]{64}$/),
  /** Of the host that this is sent to. */
  multicastHost: hostName,
  sends: z.boolean(),
  listenMs: z.int().min(1).max(10_000),
});
export type TryMulticast = z.infer<typeof TryMulticast>;
/** Length of the longest packet that came, in bytes; 0: none did. */
export const MulticastHeard = z.object({ packetBytes: z.int().min(0) });
export type MulticastHeard = z.infer<typeof MulticastHeard>;

/** POST sfld /v1/sources — the host of the VM that will be forked gets a memserver ready for this ticket. */
export const PrepareSource = z.object({
  clusterid,
  /** Absent, from an older sfmd: the master VM. */
  vmid: vmid.default(0),
  ticket: ticketId,
  /** Hosts of the ticket's clones: they alone are given the key of its pages. Absent, from an older sfmd: any host is. */
  targets: z.array(hostName).optional(),
  /** Of the host that this is sent to. */
  multicastHost,
  /** Absent: what some of the clones needed is not fetched ahead by others. */
  push: z.boolean().optional(),
});
export type PrepareSource = z.infer<typeof PrepareSource>;

/** Whose sfld is asked for what. */
const SfldAt = z.object({ host: hostName, address: z.string(), sfldPort: port });
export type SfldAt = z.infer<typeof SfldAt>;

/** POST sfld /v1/tickets — a target host starts empty VMs for this ticket. */
export const PrepareClones = z.object({
  clusterid,
  ticket: ticketId,
  shape: VmShape,
  /** As MasterStarted told; the disk itself is fetched from the parent, a clone's host needs no image. */
  diskBytes: z.number().int().min(0),
  clones: z.array(z.object({ vmid, vcpus: z.int().min(1).max(VCPUS_MAX) })).min(1),
  /** The host of the VM that is forked: its sfld is asked for the PageSource. */
  parent: SfldAt,
  /**
   * Absent: clones. Otherwise the one VM is no clone of the one at `parent` but that VM itself, which comes from there; `origin` is what it
   * was cloned with, and where the VM runs that it returns to; null: it is a master VM.
   */
  moved: z.object({ origin: z.object({ ticket: ticketId, parent: SfldAt }).nullable() }).optional(),
  /** Of the host that this is sent to. */
  multicastHost,
  /**
   * Absent: pages come from the parent's host. Otherwise they come by way of the host `via`, if there is one, and are passed on to the
   * hosts `feeds` (docs/distribution.md).
   */
  relay: z.object({ via: SfldAt.nullable(), feeds: z.array(hostName) }).optional(),
  /** All pages are to be fetched in the background; then the clones need the parent's host no more. */
  detach: z.boolean().optional(),
  /** False: pages come as they are, however narrow the link is. */
  compress: z.boolean().optional(),
});
export type PrepareClones = z.infer<typeof PrepareClones>;

/**
 * GET sfld /v1/sources/:ticket/pages — where a fork's pages will be served, asked for by the target hosts ahead of the fork,
 * so that they are connected when it comes. Answers when the memserver listens.
 */
export const PageSourceReply = z.object({
  address: z.string(),
  port,
  keyHex: z.string(),
  /** RAM pages that clones will need first, in that order. */
  prefetch: z.array(z.int().min(0)),
});
export type PageSourceReply = z.infer<typeof PageSourceReply>;

/**
 * GET sfld /v1/tickets/:ticket/relay — where a host passes on a ticket's pages, under the key of its PageSource; asked for by the hosts
 * that it feeds. Answers when its relay listens.
 */
export const RelayReply = z.object({ address: z.string(), port });
export type RelayReply = z.infer<typeof RelayReply>;

/** POST sfld /v1/tickets/:ticket/launch — body: binary descriptor (descriptor.ts). Answers when each clone runs or has failed. */
export const LaunchReply = LaunchReport;
export type LaunchReply = LaunchReport;

/** POST sfld /v1/vms/:vm/fork — forks a VM from outside, with a ticket of that VM. */
export const ForkVm = z.object({
  nclones: z.int().min(1).max(CLONES_PER_TICKET_MAX),
  /** So many will do; absent: all or none. */
  min: z.int().min(1).max(CLONES_PER_TICKET_MAX).optional(),
  /** Clones do not join the network: the only way to fork a guest without an agent, whose clones would all be the same machine there. */
  isolated: z.boolean().default(false),
});
export type ForkVm = z.infer<typeof ForkVm>;

export const ForkVmReply = z.object({
  ticket: ticketId,
  clones: z.array(z.object({ vm: vmName, host: hostName, ok: z.boolean(), reason: z.string().optional() })),
});
export type ForkVmReply = z.infer<typeof ForkVmReply>;

/** POST sfld /v1/vms/:vm/merge — destroys the clones of one ticket of a VM, or of all, as if the VM had asked. */
export const MergeVm = z.object({ ticket: ticketId.optional() });
export type MergeVm = z.infer<typeof MergeVm>;

// ---- migration ----------------------------------------------------------------------------------------------------

/** POST sfmd /v1/clusters/:clusterid/vms/:vmid/migrate — answers when the VM runs on that host, or goes on where it was. */
export const MigrateRequest = z.object({ host: hostName });
export type MigrateRequest = z.infer<typeof MigrateRequest>;

/** How long it was paused: from the command to stop until its new host had said that it runs. Null: that was not heard. */
export const MigrateReply = z.object({ host: hostName, pausedMs: z.number().min(0).nullable() });
export type MigrateReply = z.infer<typeof MigrateReply>;

/** POST sfld /v1/vms/:vm/migrate — the VM's host sends it to another one, which has prepared for it. May be asked again. */
export const SendVm = z.object({ ticket: ticketId, to: SfldAt });
export type SendVm = z.infer<typeof SendVm>;

/** `stayed`: it runs where it was, for sure. `gone`: it is not here, and not on its way. */
export const SendVmReply = z.discriminatedUnion('state', [
  z.object({ state: z.literal('moved'), pausedMs: z.number().min(0) }),
  z.object({ state: z.literal('stayed'), code: z.string(), reason: z.string() }),
  z.object({ state: z.literal('gone') }),
]);
export type SendVmReply = z.infer<typeof SendVmReply>;

/**
 * POST sfld /v1/tickets/:ticket/settle — the host that a VM comes from asks whether it runs here. If not, it never will: what was
 * prepared for it goes.
 */
export const SettleReply = z.object({ running: z.boolean() });
export type SettleReply = z.infer<typeof SettleReply>;

/** PUT sfld /v1/tickets/:ticket/box?move=MIGRATION — what clones of a migrating VM's ticket have returned so far will lie here. */
export const ResultBox = z.object({
  ticket: ticketId,
  clusterid,
  /** Who forked, and may read. */
  vmid,
  clones: z.array(z.object({ vmid, host: hostName })).max(CLONES_PER_TICKET_MAX),
});
export type ResultBox = z.infer<typeof ResultBox>;

/** POST sfmd /v1/hosts/:host/migrations/:ticket — the VM runs here; all of its memory is here. */
export const MigrationReport = z.object({ clusterid, fetched: z.boolean() });
export type MigrationReport = z.infer<typeof MigrationReport>;

// PUT    sfld /v1/tickets/:ticket/results/:vmid  body: the result of an exiting clone, from its host to the parent's
// DELETE sfld /v1/tickets/:ticket            every clone, memtap and memserver of the ticket on this host goes; idempotent
// DELETE sfld /v1/vms/:vm                    this VM on this host goes, and of a master VM all that its cluster has here; idempotent
// DELETE sfld /v1/clusters/:clusterid        everything of the cluster on this host goes; idempotent
// GET    sfld /v1/vms/:vm/exec               Upgrade: snowflock-exec; then guest-channel exec frames in both directions
// GET    sfld /v1/vms/:vm/console            Upgrade: snowflock-console; then raw bytes

/** Body of every answer with a status of 400 or more. */
export const ErrorReply = z.object({ error: z.object({ code: z.string(), message: z.string() }) });
export type ErrorReply = z.infer<typeof ErrorReply>;
