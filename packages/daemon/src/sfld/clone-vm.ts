// One clone on this host: an empty QEMU that waits, then a running VM with an identity of its own.
//
//   preparing ──▶ waiting ──launch──▶ running ◀──fork──▶ (paused some ms)      running ──▶ ended (exited | lost | powered off)
//
// Invariant: the tap joins the cluster's network only when the guest has its own identity, so that nothing with the
// parent's address ever leaves it.

import type { Socket } from 'node:net';
import { copyFile, mkdir, rm, writeFile } from 'node:fs/promises';
import {
  formatVmRef,
  guestMac,
  GUEST_MTU,
  type CloneRecord,
  SnowflockError,
  type Descriptor,
  type PrepareClones,
  type VmRef,
  type VmShape,
  type VmStatus,
} from '@snowflock/protocol';
import {
  AgentLink,
  announcePlace,
  DiskChain,
  expectDeviceState,
  goOn,
  identityFrame,
  loadDeviceState,
  openDeviceState,
  overlayPath,
  QemuProcess,
  rewindVm,
  vmPaths,
  yieldSurplusCpus,
  type BlankOverlay,
  type ProcessMark,
} from '@snowflock/vm';
import type { ClusterNetwork } from '@snowflock/network';
import { monotonicMs, vmDirectories, type HostContext } from './context.ts';
import type { Upstream } from './fork-source.ts';
import { GuestCalls, type ExitCall } from './guest-calls.ts';
import { GuestPort } from './guest-port.ts';
import { makeIdentity } from './identity.ts';
import type { CloneExit, ForkUnderWay } from './journal.ts';
import { deliverResult, dropResult } from './result-delivery.ts';
import { keepVm, OWNER_VARIABLE, type Kept } from './sweep.ts';
import { VmConsole } from './vm-console.ts';
import { VmForks, type ForkPorts } from './vm-forks.ts';

const AGENT_CONNECT_TIMEOUT_MS = 10_000;
/** The clone's first instructions fault their pages in over the network; milliseconds, but under emulation on a loaded host seconds. */
const IDENTIFY_TIMEOUT_MS = 30_000;
/** Hooks take 20 s at most (guest/c/agent/settle.c). */
const SETTLE_TIMEOUT_MS = 25_000;

export interface CloneVmOptions extends ForkPorts {
  readonly ref: VmRef;
  readonly ticket: string;
  /** Where the VM that forked it runs, and what it exits with belongs. */
  readonly parent: PrepareClones['parent'];
  readonly shape: VmShape;
  readonly vcpus: number;
  /** Where its memory and that of its own forks comes from. */
  readonly upstream: Upstream;
  /** On the other file that the memtap serves. */
  readonly blankDisk: BlankOverlay | null;
  readonly diskBytes: number;
  readonly network: ClusterNetwork;
  /** Called as soon as there is a process, before it is ready. */
  readonly onSpawned: (mark: ProcessMark) => void;
  /** It is no clone but comes itself, from another host, as who it is. */
  readonly moved: boolean;
  /** Puts the fork of it that is under way into the journal, or that none is. */
  readonly record: (fork: ForkUnderWay | null) => void;
  /** Puts it into the journal. Throws when that takes nothing more. */
  readonly recordExit: (exit: CloneExit) => void;
}

export class CloneVm implements AsyncDisposable {
  readonly ref: VmRef;
  readonly ticket: string;
  readonly port: GuestPort;
  readonly console: VmConsole;
  readonly forks: VmForks;
  status: VmStatus = 'preparing';
  /** The move to another host that the last sfld was killed in. */
  moving: ForkUnderWay | null = null;
  /** Set once it is decided that it exits; otherwise its end is a loss. */
  exit: CloneExit | null = null;
  #exiting = false;
  readonly #launched = Promise.withResolvers<void>();
  readonly #admitted = Promise.withResolvers<void>();
  readonly #context: HostContext;
  readonly #options: CloneVmOptions;
  readonly #qemu: QemuProcess;
  readonly #link: AgentLink;
  readonly #disk: DiskChain | null;
  /** Of one that comes itself: open while it waits. */
  #way: Socket | undefined;
  /** Its QEMU has the device state of the fork point already. */
  #rewound = false;
  readonly #at = {
    descriptor: null as number | null,
    loaded: null as number | null,
    running: null as number | null,
  };
  #identifiedAtMs: number | null = null;

  private constructor(
    context: HostContext,
    options: CloneVmOptions,
    parts: {
      readonly qemu: QemuProcess;
      readonly link: AgentLink;
      readonly disk: DiskChain | null;
      readonly nclones: number;
      /** Of the same QEMU. */
      readonly console?: VmConsole;
    },
  ) {
    this.#context = context;
    this.#options = options;
    this.ref = options.ref;
    this.ticket = options.ticket;
    this.#qemu = parts.qemu;
    this.#link = parts.link;
    this.#disk = parts.disk;
    this.console = parts.console ?? new VmConsole(parts.qemu.paths.console);
    const { ref, shape, vcpus, diskBytes, upstream, sources, earlier, onFork, record } = options;
    this.forks = new VmForks(context, {
      ...{ ref, shape, vcpus, upstream, sources, earlier, onFork, record },
      parts: { qemu: parts.qemu, link: parts.link, disk: parts.disk, diskBytes },
    });
    const calls = new GuestCalls({
      vm: this.ref,
      masterDaemon: context.masterDaemon,
      cloneMaster: (ticket, callId) => this.forks.cloneMaster(ticket, callId),
      results: context.results,
      host: context.host,
      exit: (call) => this.#exit(call),
      onError: (code) => context.metrics.failed(code, 'guest'),
    });
    if (!options.moved) this.admit();
    this.port = new GuestPort({
      link: parts.link,
      calls,
      admitted: this.#admitted.promise,
      // The agent was restarted inside the clone, or this sfld outside: it gets the same identity again.
      onHello: () =>
        parts.link.sendIdentity(
          0,
          makeIdentity(this.ref, { nclones: parts.nclones, vcpus: options.vcpus, ticket: options.ticket }),
        ),
    });
  }

  static async prepare(context: HostContext, options: CloneVmOptions): Promise<CloneVm> {
    const directories = vmDirectories(context, options.ref);
    await using undo = new AsyncDisposableStack();
    undo.defer(() => rm(directories.run, { recursive: true, force: true }));
    undo.defer(() => rm(directories.state, { recursive: true, force: true }));
    await mkdir(directories.state, { recursive: true, mode: 0o700 });
    const overlay = overlayPath(directories.state, 0);
    const { blankDisk } = options;
    if (blankDisk) await copyFile(blankDisk.path, overlay);
    const qemu = await QemuProcess.start(
      {
        name: `sf-${formatVmRef(options.ref)}`,
        accel: context.accel,
        vcpus: options.shape.vcpus,
        memoryMib: options.shape.memoryMib,
        paths: vmPaths(directories.run),
        origin: { kind: 'incoming' },
        ram: { kind: 'file', path: options.upstream.ramPath, share: false },
        disk: blankDisk && { ...blankDisk, overlay },
        nic: {
          tap: options.network.tapName(options.ref.vmid),
          // As the master VM's: the device state brings that along, and the guest then sets its own. One that comes itself has its own.
          mac: guestMac({ clusterid: options.ref.clusterid, vmid: options.moved ? options.ref.vmid : 0 }),
          mtu: GUEST_MTU,
        },
      },
      {
        forkShim: context.forkShim,
        env: { [OWNER_VARIABLE]: context.runDir },
        onSpawned: options.onSpawned,
      },
    );
    undo.defer(async () => void (await qemu.kill()));
    const link = await AgentLink.connect(qemu.paths.agent, {
      timeoutMs: AGENT_CONNECT_TIMEOUT_MS,
      gone: qemu.ended,
    });
    await expectDeviceState(qemu);
    const clone = new CloneVm(context, options, { qemu, link, disk: newDisk(context, options), nclones: 0 });
    // not of a clone: one that waits would end with this sfld
    if (options.moved) clone.#way = await openDeviceState(qemu);
    undo.move();
    return clone;
  }

  /** Takes over a clone of the sfld before this one: one that runs, or one that waits for its descriptor. */
  static async adopt(
    context: HostContext,
    options: CloneVmOptions,
    found: {
      readonly mark: ProcessMark;
      readonly launched: boolean;
      readonly nclones: number;
      readonly isolated: boolean;
      readonly fork: ForkUnderWay | null;
    },
  ): Promise<CloneVm> {
    const directories = vmDirectories(context, options.ref);
    const paths = vmPaths(directories.run);
    const qemu = await QemuProcess.adopt({ name: `sf-${formatVmRef(options.ref)}`, paths }, found.mark);
    if (!found.launched) {
      const connecting = { timeoutMs: AGENT_CONNECT_TIMEOUT_MS, gone: qemu.ended };
      const link = await AgentLink.connect(paths.agent, connecting);
      return new CloneVm(context, options, { qemu, link, disk: newDisk(context, options), nclones: 0 });
    }
    // One that was on its way to another host may run there.
    if (!found.fork?.to) await qemu.qmp.execute({ execute: 'cont' });
    if (!found.isolated) await context.networks.attach(options.ref);
    const disk = await DiskChain.of(qemu, { directory: directories.state, sizeBytes: options.diskBytes });
    // As in a master VM: the guest may wait for it with all CPUs held.
    const greeting = found.fork
      ? identityFrame(
          found.fork.forkId,
          makeIdentity(options.ref, {
            nclones: found.nclones,
            vcpus: options.vcpus,
            ticket: options.ticket,
          }),
        )
      : undefined;
    const link = AgentLink.resume(paths.agent, { gone: qemu.ended, greeting });
    const clone = new CloneVm(context, options, { qemu, link, disk, nclones: found.nclones });
    clone.status = 'running';
    clone.#launched.resolve();
    if (found.fork?.to) clone.moving = found.fork;
    else if (found.fork?.ticket) clone.forks.undo(found.fork.ticket);
    return clone;
  }

  get pid(): number {
    return this.#qemu.pid;
  }

  get ended(): QemuProcess['ended'] {
    return this.#qemu.ended;
  }

  /** Becomes the clone that the descriptor tells of; resolves when the guest has its identity and its network, and has settled. */
  async launch(descriptor: Descriptor): Promise<void> {
    const { forkId, nclones, prefetch, held, isolated } = descriptor.header;
    this.forks.learnWakeUp(prefetch);
    this.#at.descriptor = monotonicMs();
    if (!this.#rewound) await loadDeviceState(this.#qemu, descriptor.deviceState);
    this.#at.loaded = monotonicMs();
    const { vcpus, shape } = this.#options;
    const [settling] = await Promise.all([
      held ? this.#identify(forkId, nclones) : false,
      this.#qemu.qmp.execute({ execute: 'cont' }).then(() => (this.#at.running = monotonicMs())),
    ]);
    if (!isolated) await this.#context.networks.attach(this.ref);
    if (settling) await this.#link.settled(forkId, SETTLE_TIMEOUT_MS);
    if (held && vcpus < shape.vcpus) await yieldSurplusCpus(this.#qemu.qmp, vcpus);
    this.status = 'running';
    this.#launched.resolve();
  }

  /**
   * Goes back to its fork point in the QEMU that it has; answers who it is there, to be launched again. This one is over then, and also
   * when that fails: its QEMU must be ended.
   */
  async rewind(deviceState: Buffer): Promise<CloneVm> {
    const { network, blankDisk } = this.#options;
    await this.forks.finish();
    // Nothing with the address of its parent leaves it.
    await network.detachTap({ vmid: this.ref.vmid });
    const { deviceState: path } = this.#qemu.paths;
    await writeFile(path, deviceState, { mode: 0o600 });
    const link = await rewindVm(this.#qemu, {
      deviceState: path,
      disk: this.#disk && blankDisk && { chain: this.#disk, blank: blankDisk },
      link: this.#link,
    });
    const clone = new CloneVm(this.#context, this.#options, {
      ...{ qemu: this.#qemu, link, disk: this.#disk, nclones: 0, console: this.console },
    });
    clone.#rewound = true;
    clone.status = 'running';
    return clone;
  }

  /**
   * Goes on where the descriptor's VM was paused on another host. `commit`: before its first instruction, from when on it is here and
   * nowhere else. Its guest is told nothing but the time.
   */
  async arrive(descriptor: Descriptor, commit: () => void): Promise<void> {
    const { forkId, nclones, prefetch, held, isolated, channel, consoleToken } = descriptor.header;
    const { vcpus, ticket } = this.#options;
    if (channel) this.port.exec.expect(channel);
    if (consoleToken !== undefined) this.console.expect(consoleToken);
    this.forks.learnWakeUp(prefetch);
    this.#at.descriptor = monotonicMs();
    // Nothing leaves it before it runs, and then it is who it always was.
    const attached = isolated ? undefined : this.#context.networks.attachTap(this.ref);
    await Promise.all([loadDeviceState(this.#qemu, descriptor.deviceState, this.#way), attached]);
    this.#at.loaded = monotonicMs();
    if (held) this.#link.sendIdentity(forkId, makeIdentity(this.ref, { nclones, vcpus, ticket }));
    commit();
    const running = goOn(this.#qemu);
    // Otherwise the network learns it when the guest next sends something.
    if (!isolated) announcePlace(this.#qemu).catch(() => undefined);
    await running;
    this.#at.running = monotonicMs();
    this.status = 'running';
    this.#launched.resolve();
  }

  /** What need not be done before its old host has heard that it runs here. */
  async settleDown({ header: { isolated, channel } }: Descriptor): Promise<void> {
    const { vcpus, shape } = this.#options;
    if (channel) this.port.takeOver(channel);
    if (!isolated) this.#context.networks.startRouter(this.ref);
    if (vcpus < shape.vcpus) await yieldSurplusCpus(this.#qemu.qmp, vcpus);
  }

  /** sfmd knows that it is here: what its guest asks for is asked of it. */
  admit(): void {
    this.#admitted.resolve();
  }

  /** Its identity lies in the channel before its first instruction. Resolves to whether it has yet to settle. */
  async #identify(forkId: number, nclones: number): Promise<boolean> {
    const { vcpus, ticket } = this.#options;
    const identified = this.#link.identified(forkId, IDENTIFY_TIMEOUT_MS);
    this.#link.sendIdentity(forkId, makeIdentity(this.ref, { nclones, vcpus, ticket }));
    const { settling } = await identified;
    this.#identifiedAtMs = monotonicMs();
    return settling;
  }

  record(): Omit<CloneRecord, 'replication' | 'fetchedBytes' | 'waits' | 'detached'> {
    return {
      ticket: this.ticket,
      ...this.ref,
      status: this.status,
      pid: this.pid,
      descriptorAtMs: this.#at.descriptor,
      loadedAtMs: this.#at.loaded,
      runningAtMs: this.#at.running,
      identifiedAtMs: this.#identifiedAtMs,
      firstAnswerAtMs: this.port.firstCallAtMs,
    };
  }

  keep(kept: Kept): void {
    keepVm(kept, this.#context, { ref: this.ref, pid: this.pid });
  }

  /** Lets go of it when it does not fork: it runs on, for the next sfld. */
  async detach(): Promise<void> {
    await this.forks.finish();
    this.#qemu.detach();
    this.#link.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.#end({ keepDisk: false });
  }

  /** It runs on another host, and ends here. What it has forked is still read from its disk. */
  leave(): Promise<void> {
    return this.#end({ keepDisk: true });
  }

  async #end({ keepDisk }: { keepDisk: boolean }): Promise<void> {
    this.forks.abandon();
    await this.#qemu.kill();
    this.#link.close();
    await this.#context.networks.detach(this.ref);
    const directories = vmDirectories(this.#context, this.ref);
    await rm(directories.run, { recursive: true, force: true });
    if (!keepDisk) await rm(directories.state, { recursive: true, force: true });
  }

  /** ic_exit: once its result is where it belongs and the exit is recorded, the clone goes; its group reports the end. */
  async #exit({ status, bytes, signal }: ExitCall): Promise<void> {
    if (this.#exiting) throw new SnowflockError('busy', 'this VM is exiting already');
    this.#exiting = true;
    const exit = { status, resultBytes: bytes?.sizeBytes ?? 0 };
    let delivered = false;
    try {
      // A clone that exits at once would otherwise seem to have failed to start.
      await this.#launched.promise;
      if (bytes) {
        await deliverResult(this.#context, this.#options, { status, bytes, signal });
        delivered = true;
      }
      if (signal.aborted) throw new SnowflockError('interrupted', 'whoever called ic_exit is gone');
      this.#options.recordExit(exit);
    } catch (error) {
      this.#exiting = false;
      if (delivered) await dropResult(this.#context, this.#options).catch(() => undefined); // it counts only if the VM is lost
      throw error;
    }
    this.exit = exit;
    await this.#qemu.kill();
  }
}

/** Of a clone that has not run yet. */
function newDisk(context: HostContext, { ref, blankDisk, diskBytes }: CloneVmOptions): DiskChain | null {
  const { state: directory } = vmDirectories(context, ref);
  return blankDisk && new DiskChain({ directory, sizeBytes: diskBytes });
}
