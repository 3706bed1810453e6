// A master VM on this host: boots, answers its guest, forks.
//
//   starting ──▶ booting ──identified──▶ running ◀──fork──▶ (paused some ms)     any ──end──▶ ended
//
// Invariant: one fork at a time; whatever a fork's outcome, the VM runs on.

import { mkdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import {
  encodeDescriptor,
  formatVmRef,
  guestMac,
  GUEST_MTU,
  LaunchReply,
  NoReply,
  RedeemReply,
  SnowflockError,
  toSnowflockError,
  type ForkRecord,
  type Placement,
  type VmRef,
  type VmShape,
} from '@snowflock/protocol';
import {
  AgentLink,
  createOverlay,
  DiskChain,
  freezeVm,
  QemuProcess,
  vmPaths,
  type FrozenVm,
  type RamRange,
} from '@snowflock/vm';
import { bootSource, type BootSource } from './boot-source.ts';
import { monotonicMs, type HostContext } from './context.ts';
import type { ForkSource } from './fork-source.ts';
import { GuestCalls } from './guest-calls.ts';
import { GuestPort } from './guest-port.ts';
import { makeIdentity } from './identity.ts';
import { OWNER_VARIABLE } from './sweep.ts';

const AGENT_CONNECT_TIMEOUT_MS = 10_000;
/** The guest answers in about a ms; a guest that swaps or is being stopped may need long. */
const HOLD_TIMEOUT_MS = 5_000;
const REDEEM_TIMEOUT_MS = 10_000;
/** Clones start in some 100 ms; on a loaded host under emulation in seconds. */
const LAUNCH_TIMEOUT_MS = 60_000;
/** 6 MiB sent unasked: what a clone of a small guest needs to answer, with room for larger ones. */
const WAKE_UP_PAGES_MAX = 1536;

export interface MasterVmParts {
  readonly qemu: QemuProcess;
  readonly link: AgentLink;
  readonly ram: RamRange;
  readonly disk: DiskChain | null;
  readonly diskBytes: number;
}

export interface MasterVmOptions {
  readonly ref: VmRef;
  readonly shape: VmShape;
  readonly sources: (ticket: string) => ForkSource | undefined;
  readonly onFork: (record: ForkRecord) => void;
}

export class MasterVm implements AsyncDisposable {
  readonly ref: VmRef;
  readonly shape: VmShape;
  readonly startedAtMs = monotonicMs();
  readonly port: GuestPort;
  readonly #context: HostContext;
  readonly #parts: MasterVmParts;
  readonly #sources: (ticket: string) => ForkSource | undefined;
  readonly #onFork: (record: ForkRecord) => void;
  #forks: Promise<unknown> = Promise.resolve();
  /** Pages that clones of earlier forks needed first, in that order. */
  readonly #wakeUp = new Set<number>();

  private constructor(context: HostContext, options: MasterVmOptions & { readonly parts: MasterVmParts }) {
    this.#context = context;
    this.ref = options.ref;
    this.shape = options.shape;
    this.#parts = options.parts;
    this.#sources = options.sources;
    this.#onFork = options.onFork;
    const calls = new GuestCalls({
      vm: this.ref,
      masterDaemon: context.masterDaemon,
      cloneMaster: (ticket, callId) => this.#cloneMaster(ticket, callId),
      exit: () => Promise.reject(new SnowflockError('not-clone', 'a master VM cannot exit as a clone')),
    });
    this.port = new GuestPort({
      link: options.parts.link,
      calls,
      onHello: () => options.parts.link.sendIdentity(0, makeIdentity(this.ref, 0)),
    });
  }

  static async start(context: HostContext, options: MasterVmOptions): Promise<MasterVm> {
    const { ref, shape } = options;
    const source = await bootSource(shape);
    const network = await context.networks.acquire(ref.clusterid);
    await using undo = new AsyncDisposableStack();
    undo.defer(() => context.networks.release(ref.clusterid));
    const tap = await network.addTap({ vmid: ref.vmid });
    undo.defer(() => network.removeTap({ vmid: ref.vmid }));
    const directories = masterDirectories(context, ref);
    await mkdir(directories.state, { recursive: true, mode: 0o700 });
    undo.defer(() => rm(directories.state, { recursive: true, force: true }));
    undo.defer(() => rm(directories.run, { recursive: true, force: true }));
    const { disk, spec: diskSpec } = await firstDisk(source, directories.state);
    const qemu = await QemuProcess.start(
      {
        name: `sf-${formatVmRef(ref)}`,
        accel: context.accel,
        vcpus: shape.vcpus,
        memoryMib: shape.memoryMib,
        paths: vmPaths(directories.run),
        origin: { kind: 'boot', kernel: source.kernel, initrd: source.initrd, append: source.append },
        ram: { kind: 'anonymous' },
        disk: diskSpec,
        nic: { tap, mac: guestMac(ref), mtu: GUEST_MTU },
      },
      { forkShim: context.forkShim, env: { [OWNER_VARIABLE]: context.runDir } },
    );
    undo.defer(async () => void (await qemu.kill()));
    const [ram, link] = await Promise.all([
      qemu.forkControl.ramRange(shape.memoryMib * 2 ** 20),
      AgentLink.connect(qemu.spec.paths.agent, { timeoutMs: AGENT_CONNECT_TIMEOUT_MS, gone: qemu.ended }),
      network.attachTap({ vmid: ref.vmid }),
    ]);
    undo.move();
    const parts = { qemu, link, ram, disk, diskBytes: source.disk?.sizeBytes ?? 0 };
    return new MasterVm(context, { ...options, parts });
  }

  get pid(): number {
    return this.#parts.qemu.pid;
  }

  /** As the guest sees it; 0 without a disk. */
  get diskBytes(): number {
    return this.#parts.diskBytes;
  }

  get consolePath(): string {
    return this.#parts.qemu.spec.paths.console;
  }

  get ended(): QemuProcess['ended'] {
    return this.#parts.qemu.ended;
  }

  /** Gets what the next fork needs ready: the overlay that the master VM will write to. */
  async prepareFork(): Promise<void> {
    await this.#parts.disk?.prepare(this.#parts.qemu);
  }

  /** Learns from a fork that is over what the clones of the next one will need at once. */
  learnWakeUp(pages: readonly number[]): void {
    for (const page of pages) if (this.#wakeUp.size < WAKE_UP_PAGES_MAX) this.#wakeUp.add(page);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#parts.qemu.kill();
    this.#parts.link.close();
    const network = await this.#context.networks.acquire(this.ref.clusterid);
    await network.removeTap({ vmid: this.ref.vmid });
    await this.#context.networks.release(this.ref.clusterid);
    await this.#context.networks.release(this.ref.clusterid);
    const directories = masterDirectories(this.#context, this.ref);
    await rm(directories.state, { recursive: true, force: true });
    await rm(directories.run, { recursive: true, force: true });
  }

  #cloneMaster(ticket: string, callId: number): Promise<number> {
    const fork = this.#forks.then(() => this.#fork(ticket, callId));
    this.#forks = fork.catch(() => undefined); // its caller gets the error; the next fork goes on
    return fork;
  }

  /** The whole fork; resolves to how many clones run. */
  async #fork(ticket: string, forkId: number): Promise<number> {
    const calledAtMs = monotonicMs();
    const base = `/v1/clusters/${this.ref.clusterid}/tickets/${ticket}`;
    const { clones } = await this.#context.masterDaemon.request({
      method: 'POST',
      path: `${base}/redeem`,
      reply: RedeemReply,
      timeoutMs: REDEEM_TIMEOUT_MS,
    });
    const redeemedAtMs = monotonicMs();
    let results: LaunchReply['clones'];
    try {
      results = await this.#freezeAndLaunch({ ticket, forkId, clones, calledAtMs, redeemedAtMs });
    } catch (thrown) {
      const { message } = toSnowflockError(thrown);
      results = clones.map(({ vmid }) => ({ vmid, ok: false, reason: message }));
    }
    const running = results.filter((clone) => clone.ok).length;
    await this.#context.masterDaemon.request({
      method: 'POST',
      path: `${base}/launched`,
      body: { clones: results },
      reply: NoReply,
      timeoutMs: REDEEM_TIMEOUT_MS,
    });
    if (running === 0) {
      const reason = results.find((clone) => clone.reason !== undefined)?.reason ?? 'no clone was placed';
      throw new SnowflockError('fork-failed', `no clone of ticket ${ticket} could be started: ${reason}`);
    }
    return running;
  }

  async #freezeAndLaunch(fork: {
    ticket: string;
    forkId: number;
    clones: readonly Placement[];
    calledAtMs: number;
    redeemedAtMs: number;
  }): Promise<LaunchReply['clones']> {
    const source = this.#sources(fork.ticket);
    if (!source)
      throw new SnowflockError('internal', `the memserver of ticket ${fork.ticket} was never prepared`);
    const [memserver] = await Promise.all([source.ready(), this.prepareFork()]);
    const readyAtMs = monotonicMs();
    const frozen = await this.#freeze(source, fork);
    const frozenAtMs = monotonicMs();
    const { ram, diskBytes } = this.#parts;
    const { port, presence, presentPages } = await source.serve(frozen, { ram, diskBytes });
    const servedAtMs = monotonicMs();
    const descriptor = encodeDescriptor({
      header: {
        clusterid: this.ref.clusterid,
        ticket: fork.ticket,
        forkId: fork.forkId,
        nclones: fork.clones.length,
        shape: this.shape,
        source: { address: this.#context.address, port, keyHex: source.key.toString('hex') },
        ramBytes: ram.length,
        diskBytes,
        prefetch: [...this.#wakeUp],
      },
      presence,
      deviceState: frozen.deviceState,
    });
    const results = await this.#launch(fork.ticket, fork.clones, descriptor);
    const { timings } = frozen;
    this.#onFork({
      ticket: fork.ticket,
      clusterid: this.ref.clusterid,
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
    source: ForkSource,
    fork: { forkId: number; clones: readonly Placement[] },
  ): Promise<FrozenVm> {
    const { qemu, link, disk } = this.#parts;
    const identity = makeIdentity(this.ref, fork.clones.length);
    let told = false;
    const tellMaster = (): void => {
      if (told) return;
      told = true;
      link.sendIdentity(fork.forkId, {
        ...makeIdentity(this.ref, fork.clones.length),
        entropy: identity.entropy,
      });
    };
    try {
      await link.hold(fork.forkId, HOLD_TIMEOUT_MS);
      return await freezeVm(qemu, { leasePath: source.leasePath, disk, beforeContinue: tellMaster });
    } finally {
      tellMaster();
      link.release();
    }
  }

  /** Sends the descriptor to each host at once; a host that fails costs its clones only. */
  async #launch(
    ticket: string,
    clones: readonly Placement[],
    descriptor: Buffer,
  ): Promise<LaunchReply['clones']> {
    const byHost = Map.groupBy(clones, (clone) => clone.host);
    const replies = [...byHost].map(async ([host, placed]): Promise<LaunchReply['clones']> => {
      const first = placed[0];
      if (!first) return [];
      const { peers } = this.#context;
      const down = peers.downSignal(host);
      try {
        const reply = await peers.client({ host, address: first.address, port: first.sfldPort }).request({
          method: 'POST',
          path: `/v1/tickets/${ticket}/launch`,
          body: descriptor,
          reply: LaunchReply,
          timeoutMs: LAUNCH_TIMEOUT_MS,
          signal: down,
        });
        return reply.clones;
      } catch (thrown) {
        const reason = `host ${host}: ${toSnowflockError(down.aborted ? down.reason : thrown).message}`;
        this.#context.log.warn({ ticket, host, reason }, 'launch failed');
        return placed.map(({ vmid }) => ({ vmid, ok: false, reason }));
      }
    });
    return (await Promise.all(replies)).flat();
  }
}

function masterDirectories(context: HostContext, ref: VmRef): { run: string; state: string } {
  const name = `${ref.clusterid}-${ref.vmid}`;
  return { run: join(context.runDir, 'v', name), state: join(context.stateDir, 'vms', name) };
}

async function firstDisk(source: BootSource, directory: string) {
  if (!source.disk) return { disk: null, spec: null };
  const overlay = join(directory, 'disk-0.qcow2');
  await createOverlay({ path: overlay, backing: source.disk.path, backingFormat: source.disk.format });
  return {
    disk: new DiskChain({ directory, overlay }),
    spec: { overlay, backing: source.disk.path, backingFormat: source.disk.format },
  };
}
