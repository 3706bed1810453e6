// Everything that one sfld owns, and what can be asked of it. The routes are in routes.ts.
//
// Ownership: master VMs by cluster; fork sources by ticket (on the host of the VM that forks); clone groups by ticket (on each
// target host). Destroying is idempotent, so that sfmd may repeat it until a host has answered.

import { rm } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import {
  formatVmRef,
  parseVmRef,
  SnowflockError,
  type CheckpointFrozen,
  type CloneRecord,
  type Descriptor,
  type ForkRecord,
  type HostState,
  type LaunchReply,
  type MasterStarted,
  type PageSourceReply,
  type PrepareClones,
  type PrepareSource,
  type RelayReply,
  type SendVm,
  type SendVmReply,
  type ServeCheckpoint,
  type SettleReply,
  type StartMaster,
  type VmRef,
  type WriteCheckpoint,
} from '@snowflock/protocol';
import { memtapStatsSchema, type Learnt, type MemserverStats } from '@snowflock/replication';
import { logAbout } from '../log.ts';
import { adopt } from './adoption.ts';
import { fetchDescriptor, serveCheckpoint } from './checkpoint-source.ts';
import type { StoredCheckpoint } from './checkpoint-store.ts';
import { CheckpointWriter } from './checkpoint-writer.ts';
import { CloneGroup, type CloneGroupPorts } from './clone-group.ts';
import type { CloneVm } from './clone-vm.ts';
import { pagesDirectory, vmDirectories, type HostContext } from './context.ts';
import { ForkSource, type ForkSourceOptions } from './fork-source.ts';
import type { Peer } from '../peer.ts';
import { LocalCopies } from './local-copies.ts';
import { MasterVm } from './master-vm.ts';
import { Migrations } from './migrations.ts';
import type { Kept } from './sweep.ts';
import { ownersHost } from './ticket-places.ts';
import type { VmForks } from './vm-forks.ts';

/** Records of forks and of clones that are gone, kept for whoever measures. */
const FORK_RECORDS_MAX = 256;
const GONE_CLONES_MAX = 1024;
/** What stopping with all VMs waits for sfmd to hear of it. */
const LAST_REPORTS_MS = 3_000;

/** A VM that a command may reach. */
export type ReachableVm = Pick<MasterVm | CloneVm, 'port' | 'console'>;

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
  /** Checkpoints that are served, by ticket. */
  readonly #served = new Map<
    string,
    { readonly stored: StoredCheckpoint; readonly descriptor: Promise<Buffer> }
  >();
  readonly #writer: CheckpointWriter;
  readonly #copies: LocalCopies;
  readonly #migrations: Migrations;
  readonly #forks: ForkRecord[] = [];
  readonly #gone: CloneRecord[] = [];
  /** Groups without clones that are being given up, by ticket. */
  readonly #emptied = new Map<string, Promise<void>>();
  /** Tickets whose end is under way. */
  readonly #destroying = new Map<string, Promise<void>>();
  #stopping = false;

  constructor(context: HostContext) {
    this.context = context;
    this.#writer = new CheckpointWriter(context);
    this.#copies = new LocalCopies(context, (options) => this.#sourceForCopy(options));
    this.#migrations = new Migrations(context, {
      vm: (ref) => this.vm(ref),
      source: (ticket) => this.#sourceOf(ticket),
      isIsolated: (ref) => this.#groupOf(ref)?.isolated ?? false,
      letGo: (vm) => this.#letGo(vm),
      lose: async (vm, reason) => {
        void context.reports.ended(vm.ref, { how: 'lost', reason });
        await this.#letGo(vm);
      },
      feedFromCopy: (...of) => this.#copies.feedFromCopy(...of),
    });
    context.metrics.watch({
      memtaps: () => [...this.#groups.values()].map((group) => [group.ticket, () => group.stats()] as const),
      memservers: () =>
        [...this.#sources.values()].map((source) => [source.ticket, () => source.stats()] as const),
      relays: () =>
        [...this.#groups.values()]
          .filter(({ isRelay }) => isRelay)
          .map((group) => [group.ticket, () => group.relayStats()] as const),
      vms: () => ({
        master: this.#masters.size,
        clone: [...this.#groups.values()].reduce((sum, { clones }) => sum + clones.size, 0),
      }),
    });
  }

  async startMaster({ clusterid, shape, checkpoint }: StartMaster): Promise<MasterStarted> {
    this.#refuseWhenStopping();
    if (this.vm({ clusterid, vmid: 0 }) || this.#starting.has(clusterid))
      throw new SnowflockError('bad-request', `cluster ${clusterid} has a master VM on this host already`);
    this.#starting.add(clusterid);
    let started: MasterStarted;
    try {
      if (checkpoint) return await this.#startFromCheckpoint({ clusterid, shape, checkpoint });
      const master = await MasterVm.start(this.context, {
        ref: { clusterid, vmid: 0 },
        shape,
        ...this.#ports,
      });
      this.#own(master);
      started = { diskBytes: master.diskBytes };
      logAbout(this.context.log, master.ref).info({ shape }, 'master VM started');
    } finally {
      this.#starting.delete(clusterid);
    }
    return started;
  }

  /** It is a clone of its own: fed by a memtap, from files in place of a frozen process. */
  async #startFromCheckpoint({
    clusterid,
    shape,
    checkpoint,
  }: StartMaster & { checkpoint: NonNullable<StartMaster['checkpoint']> }): Promise<MasterStarted> {
    const { ticket, diskBytes, source: parent } = checkpoint;
    const clones = [{ vmid: 0, vcpus: shape.vcpus }];
    const prepared = this.prepareClones({ clusterid, ticket, shape, diskBytes, clones, parent });
    try {
      const [descriptor] = await Promise.all([fetchDescriptor(this.context, checkpoint), prepared]);
      const { clones: results } = await this.launch(ticket, descriptor);
      const failed = results.find(({ ok }) => !ok);
      if (failed) throw new SnowflockError('vm-failed', failed.reason ?? 'it did not start');
    } catch (error) {
      await this.destroyTicket(ticket);
      throw error;
    }
    return { diskBytes };
  }

  /** To another host, which has prepared for it. */
  async sendVm(ref: VmRef, ask: SendVm): Promise<SendVmReply> {
    this.#refuseWhenStopping();
    return this.#migrations.send(ref, ask);
  }

  /** Throws 'unauthorized' unless the caller is the host that the VM of a migration comes from. */
  assertComesFrom(ticket: string, peer: Peer, vm: VmRef | undefined): void {
    const group = this.#groups.get(ticket);
    const isIts =
      group?.clusterid === vm?.clusterid && group?.request.clones.some(({ vmid }) => vmid === vm?.vmid);
    if (group?.moved && peer.isHost(group.parentHost) && isIts) return;
    throw new SnowflockError('unauthorized', `no VM comes from '${peer.name}' by migration ${ticket}`);
  }

  /** Whether the VM of a migration runs here; if not, it never will. */
  async settleMigration(ticket: string): Promise<SettleReply> {
    const group = this.#destroying.has(ticket) ? undefined : this.#groups.get(ticket);
    if ((await group?.settled()) === true) return { running: true };
    await this.destroyTicket(ticket);
    return { running: false };
  }

  /** Of a VM that has gone to another host. */
  async #letGo(vm: MasterVm | CloneVm): Promise<void> {
    const { clusterid, vmid } = vm.ref;
    const { host } = this.context;
    for (const source of [...this.#sources.values()])
      if (source.clusterid === clusterid && source.owner === vmid && (await this.#isIdle(source))) {
        // Nothing was forked with it yet; its new host has one of its own.
        this.#sources.delete(source.ticket);
        await source[Symbol.asyncDispose]();
      }
    if (this.#masters.get(clusterid) === vm) {
      this.#masters.delete(clusterid);
      await vm.leave();
    }
    const group = this.#groupOf(vm.ref);
    await group?.leave(vmid);
    if (group) await this.#disposeIfLeft(group.ticket);
    this.context.log.debug({ clusterid, vmid, host }, 'VM let go of');
  }

  /** Nothing was ever forked with it. */
  async #isIdle(source: ForkSource): Promise<boolean> {
    const { ticket } = source;
    if (this.#served.has(ticket) || this.#groups.has(ticket)) return false;
    return (await source.stats())?.frozenPid === null;
  }

  #groupOf({ clusterid, vmid }: VmRef): CloneGroup | undefined {
    return [...this.#groups.values()].find(
      (group) => group.clusterid === clusterid && group.clones.has(vmid),
    );
  }

  /** Of a group's pages, on this host; in place of what an earlier attempt has left. Throws 'no-such-ticket' when the ticket is over. */
  async #sourceForCopy(options: ForkSourceOptions): Promise<ForkSource> {
    const { ticket } = options;
    const old = this.#sources.get(ticket);
    this.#sources.delete(ticket);
    // They have one directory.
    await old?.[Symbol.asyncDispose]();
    if (!this.#groups.has(ticket) || this.#destroying.has(ticket))
      throw new SnowflockError('no-such-ticket', `ticket ${ticket} is over`);
    const source = ForkSource.prepare(this.context, options);
    this.#sources.set(ticket, source);
    await source.ready();
    return source;
  }

  /** Of clones that shall need their parent's host no more. */
  #detachLater(group: CloneGroup): void {
    const { detaches, fetched, ticket } = group;
    const [owner] = group.clones.keys();
    if (!detaches || fetched || owner === undefined) return;
    const place = { owner, directory: pagesDirectory(this.context, ticket), own: true };
    void this.#copies.feedFromCopy(
      group,
      place,
      () => group.clones.size > 0 && this.#groups.get(ticket) === group,
    );
  }

  /**
   * A group all of whose clones have gone is kept only for what is read through its memtap. It goes before its ticket does, so that whoever
   * joins the ticket need not wait for it.
   */
  async #disposeIfLeft(ticket: string): Promise<void> {
    const group = this.#groups.get(ticket);
    const isRead =
      this.#writer.reads(ticket) || [...this.#sources.values()].some(({ upstream }) => upstream === ticket);
    if (!group?.isLeft || group.isRelay || isRead || this.#destroying.has(ticket)) return;
    if (group.moved) return this.destroyTicket(ticket);
    this.#groups.delete(ticket);
    const end = this.#giveUp(group).finally(() => this.#emptied.delete(ticket));
    this.#emptied.set(ticket, end);
    await end;
  }

  /** With what it was fed from on this host. */
  async #giveUp(group: CloneGroup): Promise<void> {
    await group[Symbol.asyncDispose]();
    if (!group.detaches) return;
    const source = this.#sources.get(group.ticket);
    this.#sources.delete(group.ticket);
    await source?.[Symbol.asyncDispose]();
  }

  /** Takes over what the sfld before this one owned; answers what is not to be swept. */
  async adopt(): Promise<Kept> {
    const kept = await adopt(this.context, {
      ...this.#ports,
      onMaster: (master) => this.#own(master),
      onSource: (source) => this.#sources.set(source.ticket, source),
      onGroup: (group) => this.#groups.set(group.ticket, group),
    });
    for (const master of this.#masters.values()) this.#migrations.resume(master);
    for (const group of this.#groups.values()) {
      this.#detachLater(group);
      for (const clone of group.clones.values()) {
        this.#migrations.resume(clone);
        if (group.hasArrived) this.#migrations.settleIn(group, clone.ref);
      }
    }
    return kept;
  }

  readonly #ports: CloneGroupPorts = {
    sources: (ticket) => this.#sourceOf(ticket),
    earlier: ({ clusterid, vmid }, ticket) =>
      [...this.#sources.values()].findLast(
        (each) =>
          each.ticket !== ticket &&
          each.clusterid === clusterid &&
          each.owner === vmid &&
          each.frozenPid !== null &&
          !this.#destroying.has(each.ticket),
      ),
    group: (ticket) => (this.#destroying.has(ticket) ? undefined : this.#groups.get(ticket)),
    onGone: (record) => this.#onCloneGone(record),
    onEnded: (ticket) => {
      this.#disposeIfLeft(ticket).catch((error: unknown) =>
        this.context.log.error({ ticket, err: error }, 'what is left of its clones could not be cleaned up'),
      );
    },
    onFork: (record) => {
      keep(this.#forks, record, FORK_RECORDS_MAX);
      this.context.metrics.forked(record);
      const { pauseMs, totalMs, descriptorBytes, presentPages } = record;
      const log = logAbout(this.context.log, record);
      log.info({ pauseMs, totalMs, descriptorBytes, presentPages }, 'forked');
    },
  };

  #own(master: MasterVm): void {
    this.#masters.set(master.ref.clusterid, master);
    void master.ended.then((end) => this.#onMasterEnd(master, end.byGuest, end.reason));
  }

  async prepareSource(request: PrepareSource): Promise<void> {
    const { clusterid, vmid: owner, ticket, targets, multicastHost, push } = request;
    this.#refuseWhenStopping();
    const vm = this.vm({ clusterid, vmid: owner });
    if (!vm)
      throw new SnowflockError('no-such-vm', `VM ${clusterid}:${owner} is not on host ${this.context.host}`);
    let source = this.#sources.get(ticket);
    if (!source) {
      const upstream = vm.forks.upstream?.ticket ?? null;
      const needs = push === true ? this.#needsOf(vm.forks, ticket) : undefined;
      const of = { ticket, clusterid, owner, upstream, targets, multicastHost, needs };
      source = ForkSource.prepare(this.context, of);
      this.#sources.set(ticket, source);
    }
    await Promise.all([source.ready(), vm.forks.prepare()]);
  }

  /** What clones of the VM's last fork needed, so far if it is not over yet. */
  async #needsOf(forks: VmForks, ticket: string): Promise<Buffer> {
    const learnt = await this.#ports.earlier(forks.ref, ticket)?.learnt();
    return learnt && learnt.needs.length > 0 ? learnt.needs : forks.needs;
  }

  /** Throws 'unauthorized' unless clones of the ticket are placed on the caller's host: what is given is the key to all of its memory. */
  assertMayFetch(ticket: string, peer: Peer): void {
    const targets = this.#sources.get(ticket)?.targets ?? null;
    if (targets === null || targets.some((host) => peer.isHost(host))) return;
    throw new SnowflockError(
      'unauthorized',
      `the pages of ticket ${ticket} are for hosts that its clones are placed on, not for '${peer.name}'`,
    );
  }

  /** Where the pages of a ticket's fork will be served; waits for its memserver. */
  async pageSource(ticket: string): Promise<PageSourceReply> {
    const source = this.#sourceOf(ticket);
    const prefetch =
      this.#served.get(ticket)?.stored.wakeUpPages ?? (source && this.#ownerOf(source)?.forks.wakeUpPages);
    if (!source || !prefetch)
      throw new SnowflockError(
        'no-such-ticket',
        `ticket ${ticket} was not prepared on host ${this.context.host}`,
      );
    const { port } = await source.ready();
    const keyHex = source.key.toString('hex');
    return { address: this.context.address, port, keyHex, prefetch: [...prefetch] };
  }

  /** Where this host passes on the pages of a ticket, for a host that it feeds. Throws 'unauthorized' for any other. */
  async relaySource(ticket: string, peer: Peer): Promise<RelayReply> {
    const group = this.#destroying.has(ticket) ? undefined : this.#groups.get(ticket);
    if (!group)
      throw new SnowflockError(
        'no-such-ticket',
        `ticket ${ticket} was not prepared on host ${this.context.host}`,
      );
    if (group.request.relay?.feeds.some((host) => peer.isHost(host)) !== true)
      throw new SnowflockError('unauthorized', `ticket ${ticket} is not passed on to '${peer.name}'`);
    return group.relaySource();
  }

  /** Resolves when the VM goes on; sfmd is told when the checkpoint is written. */
  async writeCheckpoint(request: WriteCheckpoint): Promise<CheckpointFrozen> {
    this.#refuseWhenStopping();
    const vm = this.vm(parseVmRef(request.vm));
    if (!vm) throw new SnowflockError('no-such-vm', `VM ${request.vm} is not on host ${this.context.host}`);
    if (!(await vm.port.agentAnswers()))
      throw new SnowflockError(
        'no-agent',
        `no SnowFlock agent answers in VM ${request.vm}: its guest has none, or still boots. VMs made of a checkpoint of it could not be told who they are`,
      );
    return this.#writer.write(request, vm.forks);
  }

  /** To the host of a new master VM. */
  async serveCheckpoint(name: string, { id, clusterid, ticket, target }: ServeCheckpoint): Promise<void> {
    this.#refuseWhenStopping();
    const stored = this.context.checkpoints.find(name, id);
    if (this.#sources.has(ticket))
      throw new SnowflockError('bad-request', `ticket ${ticket} is being served already`);
    const needs = Promise.resolve(stored.needs);
    const of = { ticket, clusterid, owner: 0, upstream: null, targets: [target], needs };
    const source = ForkSource.prepare(this.context, of);
    this.#sources.set(ticket, source);
    const descriptor = serveCheckpoint(this.context, source, stored);
    this.#served.set(ticket, { stored, descriptor });
    try {
      await descriptor;
    } catch (error) {
      await this.destroyTicket(ticket);
      throw error;
    }
  }

  /** Of a checkpoint that is served. */
  async sourceDescriptor(ticket: string): Promise<Buffer> {
    const served = this.#served.get(ticket);
    if (served) return served.descriptor;
    throw new SnowflockError(
      'no-such-ticket',
      `host ${this.context.host} serves nothing for ticket ${ticket}`,
    );
  }

  async prepareClones(request: PrepareClones): Promise<void> {
    this.#refuseWhenStopping();
    let group = this.#groups.get(request.ticket);
    if (!group) {
      group = CloneGroup.prepare(this.context, request, this.#ports);
      this.#groups.set(request.ticket, group);
    }
    await group.prepared();
  }

  /** Throws 'unauthorized' unless the caller is the host of the VM that the ticket forks: clones become whatever it says. */
  async assertMayLaunch(ticket: string, peer: Peer): Promise<void> {
    const parent = this.#groups.get(ticket)?.parentHost;
    if (parent === undefined || peer.isHost(parent)) return;
    // It may have been migrated since.
    const owner = await ownersHost(this.context, ticket);
    if (owner && peer.isHost(owner.host)) return;
    throw new SnowflockError(
      'unauthorized',
      `the clones of ticket ${ticket} are launched by host '${parent}', not by '${peer.name}'`,
    );
  }

  async launch(ticket: string, descriptor: Descriptor): Promise<LaunchReply> {
    const group = this.#destroying.has(ticket) ? undefined : this.#groups.get(ticket);
    if (!group || descriptor.header.ticket !== ticket || descriptor.header.clusterid !== group.clusterid)
      throw new SnowflockError(
        'no-such-ticket',
        `ticket ${ticket} was not prepared on host ${this.context.host}`,
      );
    const reply = await group.launch(descriptor);
    if (group.hasArrived) for (const { ref } of group.clones.values()) this.#migrations.settleIn(group, ref);
    this.#detachLater(group);
    this.context.metrics.launched(reply);
    for (const clone of group.clones.values()) {
      this.context.metrics.identified(clone.record());
      logAbout(this.context.log, { ...clone.ref, ticket }).info('clone runs');
    }
    return reply;
  }

  /** Whoever asks while it is under way waits for the same end. */
  destroyTicket(ticket: string): Promise<void> {
    const under = this.#destroying.get(ticket);
    if (under) return under;
    const end = this.#destroyTicket(ticket).finally(() => {
      this.#destroying.delete(ticket);
      this.#groups.delete(ticket);
      this.#sources.delete(ticket);
      this.#served.delete(ticket);
    });
    this.#destroying.set(ticket, end);
    return end;
  }

  async #destroyTicket(ticket: string): Promise<void> {
    const group = this.#groups.get(ticket);
    const source = this.#sources.get(ticket);
    // Forks of its clones are read from its memtap: they go first.
    const over = [...this.#sources.values()].filter(({ upstream }) => upstream === ticket);
    // Clones of it that have come here.
    const came = [...this.#groups.values()].filter(({ moved }) => moved?.origin?.ticket === ticket);
    await Promise.all([...over, ...came].map((each) => this.destroyTicket(each.ticket)));
    if (group?.moved && !group.hasArrived)
      for (const { vmid } of group.request.clones)
        for (const box of this.context.results.boxesOf({ clusterid: group.clusterid, vmid }))
          if (!this.vm({ clusterid: group.clusterid, vmid })) await this.context.results.remove(box.ticket);
    await group?.[Symbol.asyncDispose]();
    await this.#emptied.get(ticket);
    if (source) {
      const [learnt, stats] = await Promise.all([source.learnt(), source.stats()]);
      if (learnt) this.#learn(source, learnt);
      if (stats) this.context.metrics.memserverSaid(ticket, stats);
      await source[Symbol.asyncDispose]();
      this.#ownerOf(source)?.forks.forkOver(ticket);
      await this.#tidyAfter(source);
    }
    await this.context.results.remove(ticket);
    this.context.metrics.ticketGone(ticket);
  }

  #learn(source: ForkSource, learnt: Learnt): void {
    const stored = this.#served.get(source.ticket)?.stored;
    if (!stored) {
      this.#ownerOf(source)?.forks.learn(learnt);
    } else if (learnt.wakeUpPages.length > 0) {
      stored.wakeUpPages = learnt.wakeUpPages;
      stored.needs = learnt.needs;
    }
  }

  /** Of a VM that has gone to another host, with its last snapshot here. */
  async #tidyAfter({ ticket, clusterid, owner: vmid, upstream }: ForkSource): Promise<void> {
    this.#sources.delete(ticket);
    const isIts = (one: { clusterid: number; owner: number }): boolean =>
      one.clusterid === clusterid && one.owner === vmid;
    const isComing = [...this.#groups.values()].some(
      (group) =>
        group.moved !== undefined &&
        group.clusterid === clusterid &&
        group.request.clones[0]?.vmid === vmid &&
        !this.#destroying.has(group.ticket),
    );
    const isHere = this.vm({ clusterid, vmid }) !== undefined;
    if (!isHere && !isComing && ![...this.#sources.values()].some(isIts)) {
      const { state } = vmDirectories(this.context, { clusterid, vmid });
      await rm(state, { recursive: true, force: true });
    }
    if (upstream !== null) await this.#disposeIfLeft(upstream);
  }

  #sourceOf(ticket: string): ForkSource | undefined {
    return this.#destroying.has(ticket) ? undefined : this.#sources.get(ticket);
  }

  /** The VM that it is a fork of, if it still runs. */
  #ownerOf({ clusterid, owner: vmid }: ForkSource): MasterVm | CloneVm | undefined {
    return this.vm({ clusterid, vmid });
  }

  /** One VM; without its master VM nothing of a cluster is left here. */
  async destroyVm({ clusterid, vmid }: VmRef): Promise<void> {
    if (vmid === 0) return this.destroyCluster(clusterid);
    const groups = [...this.#groups.values()].filter((group) => group.clusterid === clusterid);
    await Promise.all(groups.map((group) => group.destroyClone(vmid)));
  }

  async destroyCluster(clusterid: number): Promise<void> {
    const tickets = [...this.#groups.values(), ...this.#sources.values()].filter(
      (one) => one.clusterid === clusterid,
    );
    const all = new Set([...tickets.map((one) => one.ticket), ...this.context.results.ticketsOf(clusterid)]);
    await Promise.all([...all].map((ticket) => this.destroyTicket(ticket)));
    await Promise.allSettled(this.#emptied.values());
    const master = this.#masters.get(clusterid);
    this.#masters.delete(clusterid);
    await master?.[Symbol.asyncDispose]();
  }

  /** Puts a clone back to its fork point. */
  async resetVm({ clusterid, vmid }: VmRef): Promise<void> {
    this.#refuseWhenStopping();
    const group = [...this.#groups.values()].find(
      (each) => each.clusterid === clusterid && each.clones.has(vmid) && !this.#destroying.has(each.ticket),
    );
    if (!group)
      throw new SnowflockError('no-such-vm', `VM ${clusterid}:${vmid} is not on host ${this.context.host}`);
    await group.reset(vmid);
  }

  vm(ref: VmRef): MasterVm | CloneVm | undefined {
    const master = ref.vmid === 0 ? this.#masters.get(ref.clusterid) : undefined;
    if (master) return master;
    for (const group of this.#groups.values()) {
      const clone = group.clusterid === ref.clusterid ? group.clones.get(ref.vmid) : undefined;
      // One that is to come from another host is not here yet.
      if (clone && (!group.moved || group.hasArrived)) return clone;
    }
    return undefined;
  }

  /** Of one ticket, or all. */
  forks(ticket?: string): ForkRecord[] {
    return this.#forks.filter((fork) => ticket === undefined || fork.ticket === ticket);
  }

  /** Of one ticket, or all; those that are gone first. */
  async clones(ticket?: string): Promise<CloneRecord[]> {
    const asked = (one: { readonly ticket: string }): boolean =>
      ticket === undefined || one.ticket === ticket;
    const live = await Promise.all([...this.#groups.values()].filter(asked).map((group) => group.records()));
    return [...this.#gone.filter(asked), ...live.flat()];
  }

  async sourceStats(ticket: string): Promise<MemserverStats | null> {
    return (await this.#sources.get(ticket)?.stats()) ?? null;
  }

  /** What runs here, for status and for leak checks. */
  state(): HostState {
    const { host, accel } = this.context;
    const fed = [...this.#groups.values()].flatMap((group) => [...group.clones.values()]);
    const names = [...this.#masters.values(), ...fed].map(({ ref }) => ref);
    return {
      host,
      accel,
      masters: names.filter(({ vmid }) => vmid === 0).map(formatVmRef),
      clones: names.filter(({ vmid }) => vmid !== 0).map(formatVmRef),
      sources: [...this.#sources.keys()],
      groups: [...this.#groups.keys()],
    };
  }

  /** Lets go of everything: it runs on, for the next sfld. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#stopping = true;
    this.#copies[Symbol.dispose]();
    await this.#writer[Symbol.asyncDispose]();
    await Promise.allSettled(this.#emptied.values());
    await Promise.all(
      [...this.#groups.values(), ...this.#sources.values(), ...this.#masters.values()].map((one) =>
        one.detach(),
      ),
    );
    this.context.routers.detach();
  }

  /** Ends every VM of this host, and tells sfmd; nothing is started here any more. */
  async endAll(): Promise<void> {
    this.#stopping = true;
    const { host, reports } = this.context;
    const { masters, clones } = this.state();
    const ended = { how: 'lost', reason: `sfld of host ${host} was stopped with its VMs` } as const;
    const told = [...clones, ...masters].map((name) => reports.ended(parseVmRef(name), ended));
    const clusters = new Set([
      ...this.#masters.keys(),
      ...[...this.#groups.values(), ...this.#sources.values()].map((one) => one.clusterid),
    ]);
    await Promise.all([...clusters].map((clusterid) => this.destroyCluster(clusterid)));
    await Promise.race([Promise.all(told), sleep(LAST_REPORTS_MS, undefined, { ref: false })]);
  }

  #refuseWhenStopping(): void {
    if (this.#stopping)
      throw new SnowflockError('unavailable', `sfld of host ${this.context.host} is being stopped`);
  }

  #onCloneGone(record: CloneRecord): void {
    keep(this.#gone, record, GONE_CLONES_MAX);
    this.context.metrics.cloneGone(record);
    logAbout(this.context.log, record).info({ status: record.status }, 'clone ended');
    const stats = memtapStatsSchema.safeParse(record.replication);
    if (stats.success) this.context.metrics.memtapSaid(record.ticket, stats.data);
  }

  async #onMasterEnd(master: MasterVm, poweredOff: boolean, reason: string): Promise<void> {
    const { clusterid, vmid } = master.ref;
    if (this.#masters.get(clusterid) !== master) return; // destroyed on purpose
    this.#masters.delete(clusterid);
    const log = logAbout(this.context.log, { clusterid, vmid });
    log.info({ reason }, 'master VM ended');
    try {
      await master[Symbol.asyncDispose]();
    } catch (error) {
      log.error({ err: error }, 'a master VM could not be cleaned up');
    }
    await this.context.reports.ended(master.ref, { how: poweredOff ? 'powered-off' : 'lost', reason });
  }
}

function keep<T>(list: T[], item: T, max: number): void {
  list.push(item);
  if (list.length > max) list.shift();
}
