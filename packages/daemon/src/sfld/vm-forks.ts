// The forks of one VM, master VM or clone: one at a time, and what each leaves to the next.
//
//   idle ──fork──▶ redeeming ──▶ freezing ──▶ launching ──▶ idle        undoing (a fork of the last sfld) ──▶ idle
//    └──move──▶ freezing ──▶ handing over ──▶ gone, or idle
//
// Invariants: whatever a fork's outcome, the VM runs on; one that has gone to another host, or may have, never runs here again. A fork that the last sfld could not finish is undone before there is
// another: the guest has been told that its call was interrupted.

import { randomInt, randomUUID } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import {
  encodeDescriptor,
  formatVmRef,
  RedeemReply,
  SnowflockError,
  toSnowflockError,
  UNCHANGED_MAX_CHARACTERS,
  type ForkRecord,
  type LaunchReply,
  type Placement,
  type SendVm,
  type VmRef,
  type VmShape,
} from '@snowflock/protocol';
import {
  freezeAndStay,
  freezeVm,
  within,
  type AgentLink,
  type DiskChain,
  type FrozenVm,
  type QemuProcess,
  type RamRange,
} from '@snowflock/vm';
import type { Learnt } from '@snowflock/replication';
import { logAbout } from '../log.ts';
import { askMaster } from './ask-master.ts';
import { monotonicMs, type HostContext } from './context.ts';
import type { ForkSource, Upstream } from './fork-source.ts';
import { makeIdentity } from './identity.ts';
import type { ForkUnderWay } from './journal.ts';
import { launchClones } from './launch.ts';
import { undoFork } from './undo-fork.ts';

/** The guest answers in about a ms; a guest that swaps or is being stopped may need long. */
const HOLD_TIMEOUT_MS = 5_000;
/** sfmd waits for hosts that are not ready yet. */
const REDEEM_TIMEOUT_MS = 25_000;
/** What the guest's caller waits for when sfmd is away; it is told later then. */
const LAUNCHED_TIMEOUT_MS = 10_000;
/** A fork under way when sfld is stopped is finished first. */
const LAST_FORK_TIMEOUT_MS = 20_000;
/** Ids of an agent's calls count up from 1; these are never among them. */
const OWN_FORK_IDS = { min: 0x8000_0000, max: 0xffff_ffff };
/** 6 MiB sent unasked: what a clone of a small guest needs to answer, with room for larger ones. */
const WAKE_UP_PAGES_MAX = 1536;

export interface ForkAsk {
  readonly ticket: string;
  /** Names it to the guest's agent; of clone_master the id of the call. */
  readonly forkId: number;
  /** The guest's agent holds it, and its clones take on identities. */
  readonly held: boolean;
  /** Its clones do not join the network. */
  readonly isolated: boolean;
}

export type ForkedClone = LaunchReply['clones'][number] & { readonly host: string };

export interface VmParts {
  readonly qemu: QemuProcess;
  readonly link: AgentLink;
  readonly disk: DiskChain | null;
  readonly diskBytes: number;
}

/** What the forks of all VMs of a host share. */
export interface ForkPorts {
  readonly sources: (ticket: string) => ForkSource | undefined;
  /** The last fork of the VM before that of the ticket that is still served. */
  readonly earlier: (ref: VmRef, ticket: string) => ForkSource | undefined;
  readonly onFork: (record: ForkRecord) => void;
}

export interface FrozenForCheckpoint extends FrozenVm {
  /** The guest waits for the identity frame with this id. */
  readonly forkId: number;
  readonly ram: RamRange;
}

/** `unknown`: it may run elsewhere, so it must not here. */
export type MoveOutcome = 'moved' | 'stayed' | 'unknown';

export interface MoveAsk {
  /** What its pages are fetched under. */
  readonly ticket: string;
  readonly to: SendVm['to'];
  /** The guest's agent holds it. */
  readonly held: boolean;
  readonly source: ForkSource;
}

export interface FrozenToMove extends Omit<FrozenVm, 'timings'> {
  readonly forkId: number;
  readonly ram: RamRange;
  readonly stoppedAtMs: number;
  /** Where its pages are served, and which there are. */
  readonly served: ReturnType<ForkSource['serve']>;
}

export interface VmForksOptions extends ForkPorts {
  readonly ref: VmRef;
  readonly shape: VmShape;
  /** Its own; a clone may have fewer than its shape. */
  readonly vcpus: number;
  readonly parts: VmParts;
  /** Of a clone. */
  readonly upstream: Upstream | null;
  /** Puts the fork that is under way into the journal, or that none is. */
  readonly record: (fork: ForkUnderWay | null) => void;
}

/** For what no call of the guest has asked for. */
export function ownForkId(): number {
  return randomInt(OWN_FORK_IDS.min, OWN_FORK_IDS.max);
}

export class VmForks {
  readonly ref: VmRef;
  readonly shape: VmShape;
  readonly #vcpus: number;
  readonly #context: HostContext;
  readonly upstream: Upstream | null;
  readonly #parts: VmParts;
  readonly #ports: ForkPorts;
  readonly #record: VmForksOptions['record'];
  #ram: Promise<RamRange> | null = null;
  #forks: Promise<unknown> = Promise.resolve();
  /** Generations of the disk that forks are read from, by ticket; that checkpoints are made of, by id. */
  readonly #frozenDisks = new Map<string, number>();
  /** Aborts when the VM has ended or is let go of: what is to be undone then is left to others. */
  readonly #gone = new AbortController();
  /** Pages that clones of earlier forks needed first, in that order. */
  readonly #wakeUp = new Set<number>();
  /** All that those of the last one needed. */
  #needs: Buffer = Buffer.alloc(0);

  constructor(context: HostContext, options: VmForksOptions) {
    this.#context = context;
    this.ref = options.ref;
    this.shape = options.shape;
    this.#vcpus = options.vcpus;
    this.#parts = options.parts;
    this.#ports = options;
    this.upstream = options.upstream;
    this.#record = options.record;
  }

  /** Gets what the next fork needs ready: where memory lies, and the overlay that the VM will write to. */
  async prepare(): Promise<void> {
    const { disk, qemu } = this.#parts;
    await Promise.all([this.#ramRange(), disk?.prepare(qemu)]);
  }

  /** Asked once. */
  #ramRange(): Promise<RamRange> {
    this.#ram ??= this.#parts.qemu.forkControl
      .ramRange(this.shape.memoryMib * 2 ** 20)
      .catch((error: unknown) => {
        this.#ram = null;
        throw error;
      });
    return this.#ram;
  }

  get wakeUpPages(): number[] {
    return [...this.#wakeUp];
  }

  get needs(): Buffer {
    return this.#needs;
  }

  /** Learns from a fork that is over what the clones of the next one will need. */
  learn({ wakeUpPages, needs }: Learnt): void {
    this.learnWakeUp(wakeUpPages);
    if (needs.length > 0) this.#needs = needs;
  }

  learnWakeUp(pages: readonly number[]): void {
    for (const page of pages) if (this.#wakeUp.size < WAKE_UP_PAGES_MAX) this.#wakeUp.add(page);
  }

  get diskBytes(): number {
    return this.#parts.diskBytes;
  }

  /** The memserver of a fork is gone: nobody reads its frozen disk any more. */
  forkOver(ticket: string): void {
    const { disk, qemu } = this.#parts;
    const generation = this.#frozenDisks.get(ticket);
    if (generation === undefined || !disk) return;
    this.#frozenDisks.delete(ticket);
    disk.unpin(generation);
    // Between forks; one that comes meanwhile ends it.
    this.#forks = this.#forks.then(() => disk.shorten(qemu)).catch(() => undefined);
  }

  /** Resolves when no fork is under way. What is still to be undone stays in the journal. */
  async finish(): Promise<void> {
    this.#gone.abort();
    const what = `the end of the fork of VM ${formatVmRef(this.ref)}`;
    const { disk, qemu } = this.#parts;
    await within(
      this.#forks.then(() => disk?.settle(qemu)),
      LAST_FORK_TIMEOUT_MS,
      what,
    ).catch((error: unknown) =>
      logAbout(this.#context.log, this.ref).warn({ err: error }, 'a fork is cut short'),
    );
  }

  /** The VM has ended. */
  abandon(): void {
    this.#gone.abort();
  }

  /** What a fork that the last sfld was killed in has come to is not known here: its clones, wherever they run, go. */
  undo(ticket: string): void {
    const { signal } = this.#gone;
    this.#forks = undoFork(this.#context, { ...this.ref, ticket, signal }).then((undone) => {
      if (undone) this.#record(null);
    });
  }

  /** The move that the last sfld was killed in; what has become of it is found out by whoever answers `settled`. */
  resumeMove(settled: Promise<MoveOutcome>): void {
    this.#forks = settled.then(async (outcome) => {
      if (outcome !== 'stayed') return this.#gone.abort();
      await this.#parts.qemu.qmp.execute({ execute: 'cont' });
      this.#record(null);
    });
    this.#forks = this.#forks.catch(() => undefined); // the VM has ended
  }

  /**
   * Freezes the VM so that it goes on elsewhere: `handOver` takes it there while it is paused, and says whether it stays. If it does not,
   * it is left paused, for good.
   */
  move(ask: MoveAsk, handOver: (frozen: FrozenToMove) => Promise<MoveOutcome>): Promise<MoveOutcome> {
    const move = this.#forks.then(() => this.#move(ask, handOver));
    this.#forks = move.catch(() => undefined); // its caller gets the error; the next fork goes on
    return move;
  }

  async #move(
    { ticket, to, held, source }: MoveAsk,
    handOver: (frozen: FrozenToMove) => Promise<MoveOutcome>,
  ): Promise<MoveOutcome> {
    this.#refuseWhenGone();
    const { qemu, link, disk } = this.#parts;
    const [ram] = await Promise.all([this.#ramRange(), this.prepare()]);
    const forkId = ownForkId();
    this.#record({ ticket, forkId, to });
    let outcome: MoveOutcome = 'stayed';
    let paused = false;
    try {
      if (held) await link.hold(forkId, HOLD_TIMEOUT_MS);
      const served = Promise.withResolvers<Awaited<FrozenToMove['served']>>();
      served.promise.catch(() => undefined); // whoever takes it over hears of it
      const onFrozen = (copy: Pick<FrozenVm, 'process' | 'disk'>): void =>
        served.resolve(source.serve(copy, { ram, diskBytes: this.diskBytes, upstream: this.upstream }));
      const frozen = await freezeAndStay(qemu, { leasePath: source.leasePath, disk, onFrozen });
      paused = true;
      this.#keepDisk(ticket, frozen);
      outcome = await handOver({ ...frozen, forkId, ram, served: served.promise });
      return outcome;
    } finally {
      if (outcome === 'stayed') {
        if (held) link.sendIdentity(forkId, makeIdentity(this.ref, { nclones: 0, vcpus: this.#vcpus }));
        if (paused) await qemu.qmp.execute({ execute: 'cont' });
        link.release();
        this.#record(null);
      } else this.#gone.abort();
    }
  }

  /** Because the guest has called clone_master; resolves to how many clones run. */
  async cloneMaster(ticket: string, callId: number): Promise<number> {
    const clones = await this.fork({ ticket, forkId: callId, held: true, isolated: false });
    return clones.filter(({ ok }) => ok).length;
  }

  /** Resolves to what became of each clone; rejects when none runs. */
  fork(ask: ForkAsk): Promise<ForkedClone[]> {
    const fork = this.#forks.then(() => this.#fork(ask));
    this.#forks = fork.catch(() => undefined); // its caller gets the error; the next fork goes on
    return fork;
  }

  /**
   * Freezes the VM for whoever owns the lease, as a fork does, but starts nobody: a checkpoint is made of it. The frozen disk is kept
   * until forkOver(id).
   */
  freezeFor(id: string, leasePath: string): Promise<FrozenForCheckpoint> {
    const frozen = this.#forks.then(() => this.#freezeFor(id, leasePath));
    this.#forks = frozen.catch(() => undefined); // its caller gets the error; the next fork goes on
    return frozen;
  }

  async #freezeFor(id: string, leasePath: string): Promise<FrozenForCheckpoint> {
    this.#refuseWhenGone();
    const [ram] = await Promise.all([this.#ramRange(), this.prepare()]);
    const forkId = ownForkId();
    this.#record({ ticket: null, forkId });
    try {
      const frozen = await this.#freeze(leasePath, { forkId, held: true, nclones: 0 });
      this.#keepDisk(id, frozen);
      return { ...frozen, forkId, ram };
    } finally {
      this.#record(null);
    }
  }

  #keepDisk(id: string, { disk }: Pick<FrozenVm, 'disk'>): void {
    if (!disk) return;
    this.#parts.disk?.pin(disk.generation);
    this.#frozenDisks.set(id, disk.generation);
  }

  #refuseWhenGone(): void {
    if (this.#gone.signal.aborted)
      throw new SnowflockError(
        'unavailable',
        `sfld of host ${this.#context.host} is being stopped; ask again`,
      );
  }

  async #fork(ask: ForkAsk): Promise<ForkedClone[]> {
    const { ticket, forkId } = ask;
    this.#refuseWhenGone();
    this.#record({ ticket, forkId });
    try {
      return await this.#redeemAndFork(ask);
    } finally {
      this.#record(null);
    }
  }

  async #redeemAndFork(ask: ForkAsk): Promise<ForkedClone[]> {
    const { ticket } = ask;
    const calledAtMs = monotonicMs();
    const base = `/v1/clusters/${this.ref.clusterid}/tickets/${ticket}`;
    const { clones } = await askMaster(this.#context.masterDaemon, {
      method: 'POST',
      path: `${base}/redeem?vm=${this.ref.vmid}`,
      body: { redemption: randomUUID() },
      reply: RedeemReply,
      timeoutMs: REDEEM_TIMEOUT_MS,
    });
    const redeemedAtMs = monotonicMs();
    let results: LaunchReply['clones'];
    try {
      results = await this.#freezeAndLaunch({ ...ask, clones, calledAtMs, redeemedAtMs });
    } catch (thrown) {
      const { message } = toSnowflockError(thrown);
      results = clones.map(({ vmid }) => ({ vmid, ok: false, reason: message }));
    }
    const running = results.filter((clone) => clone.ok).length;
    this.#context.metrics.forkEnded(running > 0 ? 'ok' : 'failed');
    const told = this.#context.reports.launched(this.ref.clusterid, ticket, { clones: results });
    await Promise.race([told, sleep(LAUNCHED_TIMEOUT_MS, undefined, { ref: false })]);
    if (running === 0) {
      const reason = results.find((clone) => clone.reason !== undefined)?.reason ?? 'no clone was placed';
      throw new SnowflockError('fork-failed', `no clone of ticket ${ticket} could be started: ${reason}`);
    }
    const hosts = new Map(clones.map(({ vmid, host }) => [vmid, host]));
    return results.map((clone) => ({ ...clone, host: hosts.get(clone.vmid) ?? '' }));
  }

  async #freezeAndLaunch(
    fork: ForkAsk & { clones: readonly Placement[]; calledAtMs: number; redeemedAtMs: number },
  ): Promise<LaunchReply['clones']> {
    const source = this.#ports.sources(fork.ticket);
    if (!source)
      throw new SnowflockError(
        'fork-failed',
        `the memserver of ticket ${fork.ticket} is not there; sfld of host ${this.#context.host} was restarted: take a new ticket`,
      );
    const { ticket, clones } = fork;
    const placed = clones.map(({ vmid, host }) => ({ vmid, host }));
    const [memserver, ram] = await Promise.all([
      source.ready(),
      this.#ramRange(),
      this.prepare(),
      this.#context.results.open({ ticket, ...this.ref, clones: placed }),
    ]);
    const readyAtMs = monotonicMs();
    const nclones = fork.clones.length;
    const frozen = await this.#freeze(source.leasePath, { ...fork, nclones });
    const frozenAtMs = monotonicMs();
    this.#keepDisk(fork.ticket, frozen);
    const { diskBytes } = this.#parts;
    const { upstream } = this;
    // a clone's page map names the frames of its memtap's file, not of what it was forked as
    const earlier = (upstream === null && this.#ports.earlier(this.ref, fork.ticket)) || null;
    const served = await source.serve(frozen, { ram, diskBytes, upstream, earlier });
    const { port, presence, presentPages } = served;
    const unchanged = served.unchanged?.toString('base64');
    const servedAtMs = monotonicMs();
    const descriptor = encodeDescriptor({
      header: {
        clusterid: this.ref.clusterid,
        ticket: fork.ticket,
        forkId: fork.forkId,
        nclones: fork.clones.length,
        held: fork.held,
        isolated: fork.isolated,
        shape: this.shape,
        source: { address: this.#context.address, port, keyHex: source.key.toString('hex') },
        ramBytes: ram.length,
        diskBytes,
        ...(earlier && unchanged !== undefined && unchanged.length <= UNCHANGED_MAX_CHARACTERS
          ? { unchanged: { ticket: earlier.ticket, pages: unchanged } }
          : {}),
        prefetch: this.wakeUpPages,
      },
      presence,
      deviceState: frozen.deviceState,
    });
    const results = await launchClones(
      { peers: this.#context.peers, log: logAbout(this.#context.log, this.ref) },
      { ticket, clones, descriptor },
    );
    const { timings } = frozen;
    this.#ports.onFork({
      ticket: fork.ticket,
      ...this.ref,
      calledAtMs: fork.calledAtMs,
      redeemMs: fork.redeemedAtMs - fork.calledAtMs,
      holdMs: frozenAtMs - readyAtMs - timings.pauseMs,
      pauseMs: timings.pauseMs,
      stopMs: timings.stopMs,
      forkMs: timings.forkMs,
      contMs: timings.contMs,
      presenceMs: servedAtMs - frozenAtMs,
      descriptorBytes: descriptor.length,
      presentPages,
      ramBytes: ram.length,
      totalMs: monotonicMs() - fork.calledAtMs,
      memserverPid: memserver.pid,
    });
    return results;
  }

  async #freeze(
    leasePath: string,
    fork: Pick<ForkAsk, 'forkId' | 'held'> & { readonly ticket?: string; readonly nclones: number },
  ): Promise<FrozenVm> {
    const { qemu, link, disk } = this.#parts;
    if (!fork.held) return freezeVm(qemu, { leasePath, disk });
    const { nclones, ticket } = fork;
    const about = { nclones, vcpus: this.#vcpus, ...(ticket === undefined ? {} : { ticket }) };
    const identity = makeIdentity(this.ref, about);
    let told = false;
    const tellParent = (): void => {
      if (told) return;
      told = true;
      link.sendIdentity(fork.forkId, {
        ...makeIdentity(this.ref, about),
        entropy: identity.entropy,
      });
    };
    try {
      await link.hold(fork.forkId, HOLD_TIMEOUT_MS);
      return await freezeVm(qemu, { leasePath, disk, beforeContinue: tellParent });
    } finally {
      tellParent();
      link.release();
    }
  }
}
