// Everything that one sfld owns, and what can be asked of it. The routes are in routes.ts.
//
// Ownership: master VMs by cluster; fork sources by ticket (on the master VM's host); clone groups by ticket (on each
// target host). Destroying is idempotent, so that sfmd may repeat it until a host has answered.

import {
  formatVmRef,
  NoReply,
  SnowflockError,
  type CloneRecord,
  type Descriptor,
  type ForkRecord,
  type HostState,
  type LaunchReply,
  type MasterStarted,
  type PrepareClones,
  type PrepareSource,
  type StartMaster,
  type VmRef,
} from '@snowflock/protocol';
import type { MemserverStats } from '@snowflock/replication';
import { CloneGroup } from './clone-group.ts';
import type { HostContext } from './context.ts';
import { ForkSource } from './fork-source.ts';
import type { GuestPort } from './guest-port.ts';
import { MasterVm } from './master-vm.ts';

/** Records of forks and of clones that are gone, kept for whoever measures. */
const FORK_RECORDS_MAX = 256;
const GONE_CLONES_MAX = 1024;
const REPORT_TIMEOUT_MS = 10_000;

/** A VM that a command may reach. */
export interface ReachableVm {
  readonly port: GuestPort;
  readonly consolePath: string;
}

/** Where a VM of another host was found. */
export interface VmLocation {
  readonly host: string;
  readonly address: string;
  readonly sfldPort: number;
}

export class HostDaemon implements AsyncDisposable {
  readonly context: HostContext;
  /** By name; may be out of date. */
  readonly locations = new Map<string, VmLocation>();
  readonly #masters = new Map<number, MasterVm>();
  readonly #starting = new Set<number>();
  readonly #sources = new Map<string, ForkSource>();
  readonly #groups = new Map<string, CloneGroup>();
  readonly #forks: ForkRecord[] = [];
  readonly #gone: CloneRecord[] = [];

  constructor(context: HostContext) {
    this.context = context;
  }

  async startMaster({ clusterid, shape }: StartMaster): Promise<MasterStarted> {
    if (this.#masters.has(clusterid) || this.#starting.has(clusterid))
      throw new SnowflockError('bad-request', `cluster ${clusterid} has a master VM on this host already`);
    this.#starting.add(clusterid);
    let started: MasterStarted;
    try {
      const master = await MasterVm.start(this.context, {
        ref: { clusterid, vmid: 0 },
        shape,
        sources: (ticket) => this.#sources.get(ticket),
        onFork: (record) => keep(this.#forks, record, FORK_RECORDS_MAX),
      });
      this.#masters.set(clusterid, master);
      started = { diskBytes: master.diskBytes };
      void master.ended.then((end) => this.#onMasterEnd(master, end.exitCode === 0, end.reason));
    } finally {
      this.#starting.delete(clusterid);
    }
    return started;
  }

  async prepareSource({ clusterid, ticket }: PrepareSource): Promise<void> {
    const master = this.#masters.get(clusterid);
    if (!master)
      throw new SnowflockError(
        'no-such-cluster',
        `the master VM of cluster ${clusterid} is not on this host`,
      );
    let source = this.#sources.get(ticket);
    if (!source) {
      source = new ForkSource(this.context, { ticket, clusterid });
      this.#sources.set(ticket, source);
    }
    await Promise.all([source.ready(), master.prepareFork()]);
  }

  async prepareClones(request: PrepareClones): Promise<void> {
    let group = this.#groups.get(request.ticket);
    if (!group) {
      group = new CloneGroup(this.context, request, (record) => keep(this.#gone, record, GONE_CLONES_MAX));
      this.#groups.set(request.ticket, group);
    }
    await group.prepared();
  }

  async launch(ticket: string, descriptor: Descriptor): Promise<LaunchReply> {
    const group = this.#groups.get(ticket);
    if (!group || descriptor.header.ticket !== ticket || descriptor.header.clusterid !== group.clusterid)
      throw new SnowflockError(
        'no-such-ticket',
        `ticket ${ticket} was not prepared on host ${this.context.host}`,
      );
    return group.launch(descriptor);
  }

  async destroyTicket(ticket: string): Promise<void> {
    const group = this.#groups.get(ticket);
    const source = this.#sources.get(ticket);
    this.#groups.delete(ticket);
    this.#sources.delete(ticket);
    await group?.[Symbol.asyncDispose]();
    if (!source) return;
    this.#masters.get(source.clusterid)?.learnWakeUp(await source.wakeUpPages());
    await source[Symbol.asyncDispose]();
  }

  async destroyCluster(clusterid: number): Promise<void> {
    const tickets = [...this.#groups.values(), ...this.#sources.values()].filter(
      (one) => one.clusterid === clusterid,
    );
    await Promise.all(
      [...new Set(tickets.map((one) => one.ticket))].map((ticket) => this.destroyTicket(ticket)),
    );
    const master = this.#masters.get(clusterid);
    this.#masters.delete(clusterid);
    await master?.[Symbol.asyncDispose]();
  }

  vm(ref: VmRef): ReachableVm | undefined {
    if (ref.vmid === 0) return this.#masters.get(ref.clusterid);
    for (const group of this.#groups.values()) {
      const clone = group.clusterid === ref.clusterid ? group.clones.get(ref.vmid) : undefined;
      if (clone) return clone;
    }
    return undefined;
  }

  forks(): readonly ForkRecord[] {
    return this.#forks;
  }

  async clones(): Promise<CloneRecord[]> {
    const live = await Promise.all([...this.#groups.values()].map((group) => group.records()));
    return [...this.#gone, ...live.flat()];
  }

  async sourceStats(ticket: string): Promise<MemserverStats | null> {
    return (await this.#sources.get(ticket)?.stats()) ?? null;
  }

  /** What runs here, for status and for leak checks. */
  state(): HostState {
    const { host, accel } = this.context;
    const clones = [...this.#groups.values()].flatMap((group) => [...group.clones.values()]);
    return {
      host,
      accel,
      masters: [...this.#masters.values()].map((master) => formatVmRef(master.ref)),
      clones: clones.map((clone) => formatVmRef(clone.ref)),
      sources: [...this.#sources.keys()],
      groups: [...this.#groups.keys()],
    };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const clusters = new Set([
      ...this.#masters.keys(),
      ...[...this.#groups.values(), ...this.#sources.values()].map((one) => one.clusterid),
    ]);
    await Promise.all([...clusters].map((clusterid) => this.destroyCluster(clusterid)));
  }

  async #onMasterEnd(master: MasterVm, poweredOff: boolean, reason: string): Promise<void> {
    const { clusterid, vmid } = master.ref;
    if (this.#masters.get(clusterid) !== master) return; // destroyed on purpose
    this.#masters.delete(clusterid);
    const log = this.context.log.child({ clusterid, vmid });
    log.info({ reason }, 'master VM ended');
    try {
      await master[Symbol.asyncDispose]();
      await this.context.masterDaemon.request({
        method: 'POST',
        path: `/v1/clusters/${clusterid}/vms/${vmid}/ended`,
        body: { how: poweredOff ? 'powered-off' : 'lost', reason },
        reply: NoReply,
        timeoutMs: REPORT_TIMEOUT_MS,
      });
    } catch (error) {
      log.error({ err: error }, 'sfmd could not be told of the end of a master VM');
    }
  }
}

function keep<T>(list: T[], item: T, max: number): void {
  list.push(item);
  if (list.length > max) list.shift();
}
