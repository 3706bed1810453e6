// A master VM on this host: boots, answers its guest, forks.
//
//   starting ──▶ booting ──identified──▶ running ◀──fork──▶ (paused some ms)     any ──end──▶ ended
//
// Its forks are in vm-forks.ts.

import { mkdir, rm } from 'node:fs/promises';
import {
  formatVmRef,
  guestMac,
  GUEST_MTU,
  SnowflockError,
  type VmRef,
  type VmShape,
} from '@snowflock/protocol';
import {
  AgentLink,
  createOverlay,
  DiskChain,
  identityFrame,
  overlayPath,
  QemuProcess,
  vmPaths,
} from '@snowflock/vm';
import { bootSource, type BootSource } from './boot-source.ts';
import { monotonicMs, vmDirectories, type HostContext } from './context.ts';
import { GuestCalls } from './guest-calls.ts';
import { GuestPort } from './guest-port.ts';
import { makeIdentity } from './identity.ts';
import type { ForkUnderWay, MasterEntry } from './journal.ts';
import { keepVm, OWNER_VARIABLE, type Kept } from './sweep.ts';
import { VmConsole } from './vm-console.ts';
import { VmForks, type ForkPorts, type VmParts } from './vm-forks.ts';

const AGENT_CONNECT_TIMEOUT_MS = 10_000;
export interface MasterVmOptions extends ForkPorts {
  readonly ref: VmRef;
  readonly shape: VmShape;
}

export class MasterVm implements AsyncDisposable {
  readonly ref: VmRef;
  readonly shape: VmShape;
  readonly startedAtMs = monotonicMs();
  readonly port: GuestPort;
  readonly console: VmConsole;
  readonly #context: HostContext;
  readonly #parts: VmParts;
  readonly forks: VmForks;
  #entry: MasterEntry;
  #disposed = false;

  private constructor(
    context: HostContext,
    options: MasterVmOptions & { readonly parts: VmParts; readonly entry: MasterEntry },
  ) {
    this.#context = context;
    this.#entry = options.entry;
    this.ref = options.ref;
    this.shape = options.shape;
    this.#parts = options.parts;
    this.console = new VmConsole(options.parts.qemu.paths.console);
    const { sources, earlier, onFork, parts } = options;
    this.forks = new VmForks(context, {
      ...{
        ref: this.ref,
        shape: this.shape,
        vcpus: this.shape.vcpus,
        parts,
        upstream: null,
        sources,
        earlier,
        onFork,
      },
      record: (fork) => this.#record(fork),
    });
    const calls = new GuestCalls({
      vm: this.ref,
      masterDaemon: context.masterDaemon,
      cloneMaster: (ticket, callId) => this.forks.cloneMaster(ticket, callId),
      results: context.results,
      host: context.host,
      exit: () => Promise.reject(new SnowflockError('not-clone', 'a master VM cannot exit as a clone')),
      onError: (code) => context.metrics.failed(code, 'guest'),
    });
    this.port = new GuestPort({
      link: options.parts.link,
      calls,
      onHello: () => options.parts.link.sendIdentity(0, makeIdentity(this.ref, { nclones: 0 })),
    });
  }

  static async start(context: HostContext, options: MasterVmOptions): Promise<MasterVm> {
    const { ref, shape } = options;
    const source = await bootSource(shape);
    const network = await context.networks.acquire(ref.clusterid);
    await using undo = new AsyncDisposableStack();
    undo.defer(() => context.networks.release(ref.clusterid));
    let entry: MasterEntry = {
      kind: 'master',
      clusterid: ref.clusterid,
      shape,
      diskBytes: source.disk?.sizeBytes ?? 0,
      process: null,
      fork: null,
    };
    context.journal.put(entry);
    undo.defer(() => context.journal.remove(entry));
    const tap = await network.addTap({ vmid: ref.vmid });
    undo.defer(() => context.networks.detach(ref));
    const directories = vmDirectories(context, ref);
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
      {
        forkShim: context.forkShim,
        env: { [OWNER_VARIABLE]: context.runDir },
        onSpawned: (process) => context.journal.put((entry = { ...entry, process })),
      },
    );
    undo.defer(async () => void (await qemu.kill()));
    const [link] = await Promise.all([
      AgentLink.connect(qemu.paths.agent, { timeoutMs: AGENT_CONNECT_TIMEOUT_MS, gone: qemu.ended }),
      context.networks.attach(ref),
    ]);
    undo.move();
    const parts = { qemu, link, disk, diskBytes: entry.diskBytes };
    return new MasterVm(context, { ...options, parts, entry });
  }

  /** Takes over a VM of the sfld before this one. Throws when it has ended. */
  static async adopt(
    context: HostContext,
    options: ForkPorts & { readonly entry: MasterEntry },
  ): Promise<MasterVm> {
    const { entry } = options;
    const ref = { clusterid: entry.clusterid, vmid: 0 };
    if (!entry.process) throw new SnowflockError('vm-failed', 'sfld ended while it started the VM');
    const directories = vmDirectories(context, ref);
    await using undo = new AsyncDisposableStack();
    const vm = { name: `sf-${formatVmRef(ref)}`, paths: vmPaths(directories.run) };
    const qemu = await QemuProcess.adopt(vm, entry.process);
    undo.defer(async () => void (await qemu.kill()));
    // First of all: a fork that was cut short may have left it paused. One that was on its way to another host may run there.
    if (!entry.fork?.to) await qemu.qmp.execute({ execute: 'cont' });
    await context.networks.acquire(ref.clusterid);
    undo.defer(() => context.networks.release(ref.clusterid));
    const [disk] = await Promise.all([
      DiskChain.of(qemu, { directory: directories.state, sizeBytes: entry.diskBytes }),
      context.networks.attach(ref),
    ]);
    undo.move();
    // The guest may wait for its identity with all CPUs held; to one that does not, it is the time of day.
    const greeting = entry.fork
      ? identityFrame(entry.fork.forkId, makeIdentity(ref, { nclones: 0 }))
      : undefined;
    const link = AgentLink.resume(qemu.paths.agent, { gone: qemu.ended, greeting });
    const parts = { qemu, link, disk, diskBytes: entry.diskBytes };
    const master = new MasterVm(context, { ...options, ref, shape: entry.shape, parts });
    if (entry.fork?.ticket && !entry.fork.to) master.forks.undo(entry.fork.ticket);
    return master;
  }

  get pid(): number {
    return this.#parts.qemu.pid;
  }

  /** As the guest sees it; 0 without a disk. */
  get diskBytes(): number {
    return this.#parts.diskBytes;
  }

  get ended(): QemuProcess['ended'] {
    return this.#parts.qemu.ended;
  }

  keep(kept: Kept): void {
    keepVm(kept, this.#context, { ref: this.ref, pid: this.pid });
  }

  /** Lets go of it when it does not fork: it runs on, for the next sfld. */
  async detach(): Promise<void> {
    await this.forks.finish();
    this.#disposed = true;
    this.#parts.qemu.detach();
    this.#parts.link.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.#end({ keepDisk: false });
  }

  /** It runs on another host, and ends here. What it has forked is still read from its disk. */
  leave(): Promise<void> {
    return this.#end({ keepDisk: true });
  }

  /** The move to another host that the last sfld was killed in. */
  get moving(): ForkUnderWay | null {
    return this.#entry.fork?.to ? this.#entry.fork : null;
  }

  async #end({ keepDisk }: { keepDisk: boolean }): Promise<void> {
    this.#disposed = true;
    this.forks.abandon();
    await this.#parts.qemu.kill();
    this.#parts.link.close();
    await this.#context.networks.detach(this.ref);
    await this.#context.networks.release(this.ref.clusterid);
    const directories = vmDirectories(this.#context, this.ref);
    if (!keepDisk) await rm(directories.state, { recursive: true, force: true });
    await rm(directories.run, { recursive: true, force: true });
    this.#context.journal.remove(this.#entry);
  }

  #record(fork: ForkUnderWay | null): void {
    if (this.#disposed) return;
    this.#entry = { ...this.#entry, fork };
    if (fork) this.#context.journal.put(this.#entry);
    else this.#context.journal.note(this.#entry);
  }
}

async function firstDisk(source: BootSource, directory: string) {
  if (!source.disk) return { disk: null, spec: null };
  const overlay = overlayPath(directory, 0);
  await createOverlay({ path: overlay, backing: source.disk.path, backingFormat: source.disk.format });
  return {
    disk: new DiskChain({ directory, sizeBytes: source.disk.sizeBytes }),
    spec: { overlay, backing: source.disk.path, backingFormat: source.disk.format },
  };
}
