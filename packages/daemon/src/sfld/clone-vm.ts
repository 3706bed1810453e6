// One clone on this host: an empty QEMU that waits, then a running VM with an identity of its own.
//
//   preparing ──▶ waiting ──launch──▶ running ──▶ ended (exited | lost | powered off)
//
// Invariant: the tap joins the cluster's network only when the guest has its own identity, so that nothing with the
// parent's address ever leaves it.

import { mkdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import {
  formatVmRef,
  guestMac,
  GUEST_MTU,
  type CloneRecord,
  type Descriptor,
  type VmRef,
  type VmShape,
  type VmStatus,
} from '@snowflock/protocol';
import {
  AgentLink,
  createOverlay,
  expectDeviceState,
  loadDeviceState,
  QemuProcess,
  vmPaths,
} from '@snowflock/vm';
import type { ClusterNetwork } from '@snowflock/network';
import { monotonicMs, type HostContext } from './context.ts';
import { GuestCalls } from './guest-calls.ts';
import { GuestPort } from './guest-port.ts';
import { makeIdentity } from './identity.ts';
import { OWNER_VARIABLE } from './sweep.ts';

const AGENT_CONNECT_TIMEOUT_MS = 10_000;
/** The clone's first instructions fault their pages in over the network; milliseconds, but under emulation on a loaded host seconds. */
const IDENTIFY_TIMEOUT_MS = 30_000;

export interface CloneVmOptions {
  readonly ref: VmRef;
  readonly ticket: string;
  readonly shape: VmShape;
  readonly vcpus: number;
  /** Files that the memtap serves. */
  readonly ramFile: string;
  readonly diskFile: string | null;
  readonly diskBytes: number;
  readonly network: ClusterNetwork;
}

export class CloneVm implements AsyncDisposable {
  readonly ref: VmRef;
  readonly ticket: string;
  readonly port: GuestPort;
  status: VmStatus = 'preparing';
  /** Set by whoever ends it on purpose; otherwise its end is a loss. */
  exitCalled = false;
  readonly #context: HostContext;
  readonly #options: CloneVmOptions;
  readonly #qemu: QemuProcess;
  readonly #link: AgentLink;
  readonly #at = {
    descriptor: null as number | null,
    loaded: null as number | null,
    running: null as number | null,
  };
  #identifiedAtMs: number | null = null;

  private constructor(
    context: HostContext,
    options: CloneVmOptions,
    parts: { qemu: QemuProcess; link: AgentLink },
  ) {
    this.#context = context;
    this.#options = options;
    this.ref = options.ref;
    this.ticket = options.ticket;
    this.#qemu = parts.qemu;
    this.#link = parts.link;
    const calls = new GuestCalls({
      vm: this.ref,
      masterDaemon: context.masterDaemon,
      cloneMaster: () => Promise.resolve(0), // refused before it gets here: this is no master VM
      exit: () => this.#exit(),
    });
    this.port = new GuestPort({
      link: parts.link,
      calls,
      // The agent was restarted inside the clone: it gets the same identity again.
      onHello: () => parts.link.sendIdentity(0, makeIdentity(this.ref, 0)),
    });
  }

  static async prepare(context: HostContext, options: CloneVmOptions): Promise<CloneVm> {
    const directories = cloneDirectories(context, options.ref);
    await using undo = new AsyncDisposableStack();
    undo.defer(() => rm(directories.run, { recursive: true, force: true }));
    undo.defer(() => rm(directories.state, { recursive: true, force: true }));
    await mkdir(directories.state, { recursive: true, mode: 0o700 });
    const overlay = join(directories.state, 'disk-0.qcow2');
    if (options.diskFile !== null) {
      const { diskFile, diskBytes } = options;
      await createOverlay({ path: overlay, backing: diskFile, backingFormat: 'raw', sizeBytes: diskBytes });
    }
    const qemu = await QemuProcess.start(
      {
        name: `sf-${formatVmRef(options.ref)}`,
        accel: context.accel,
        vcpus: options.shape.vcpus,
        memoryMib: options.shape.memoryMib,
        paths: vmPaths(directories.run),
        origin: { kind: 'incoming' },
        ram: { kind: 'file', path: options.ramFile, share: false },
        disk: options.diskFile === null ? null : { overlay, backing: options.diskFile, backingFormat: 'raw' },
        nic: {
          tap: options.network.tapName(options.ref.vmid),
          // As the master VM's: the device state brings that along, and the guest then sets its own.
          mac: guestMac({ clusterid: options.ref.clusterid, vmid: 0 }),
          mtu: GUEST_MTU,
        },
      },
      { forkShim: context.forkShim, env: { [OWNER_VARIABLE]: context.runDir } },
    );
    undo.defer(async () => void (await qemu.kill()));
    const link = await AgentLink.connect(qemu.spec.paths.agent, {
      timeoutMs: AGENT_CONNECT_TIMEOUT_MS,
      gone: qemu.ended,
    });
    await expectDeviceState(qemu);
    undo.move();
    return new CloneVm(context, options, { qemu, link });
  }

  get pid(): number {
    return this.#qemu.pid;
  }

  get consolePath(): string {
    return this.#qemu.spec.paths.console;
  }

  get ended(): QemuProcess['ended'] {
    return this.#qemu.ended;
  }

  /** Becomes the clone that the descriptor tells of; resolves when the guest has its identity and its network. */
  async launch(descriptor: Descriptor): Promise<void> {
    const { forkId, nclones } = descriptor.header;
    this.#at.descriptor = monotonicMs();
    await loadDeviceState(this.#qemu, descriptor.deviceState);
    this.#at.loaded = monotonicMs();
    const identified = this.#link
      .identified(forkId, IDENTIFY_TIMEOUT_MS)
      .then(() => (this.#identifiedAtMs = monotonicMs()));
    this.#link.sendIdentity(forkId, makeIdentity(this.ref, nclones));
    await Promise.all([
      this.#qemu.qmp.execute({ execute: 'cont' }).then(() => (this.#at.running = monotonicMs())),
      identified,
    ]);
    await this.#options.network.attachTap({ vmid: this.ref.vmid });
    this.status = 'running';
  }

  record(): Omit<CloneRecord, 'replication' | 'fetchedBytes'> {
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

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#qemu.kill();
    this.#link.close();
    await this.#options.network.removeTap({ vmid: this.ref.vmid });
    const directories = cloneDirectories(this.#context, this.ref);
    await rm(directories.run, { recursive: true, force: true });
    await rm(directories.state, { recursive: true, force: true });
  }

  /** ic_exit: the clone goes at once; the end is reported by its group. */
  async #exit(): Promise<void> {
    this.exitCalled = true;
    await this.#qemu.kill();
  }
}

function cloneDirectories(context: HostContext, ref: VmRef): { run: string; state: string } {
  const name = `${ref.clusterid}-${ref.vmid}`;
  return { run: join(context.runDir, 'v', name), state: join(context.stateDir, 'vms', name) };
}
