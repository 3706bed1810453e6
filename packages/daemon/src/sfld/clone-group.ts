// The clones of one ticket on this host; group-memtap.ts serves them all, group-record.ts is what the next sfld will know of them.
//
//   preparing ──▶ prepared ──launch──▶ running ──dispose──▶ gone        prepared or running: adopted by the next sfld
//
// Invariant: the memtap outlives its clones; a clone that ends is reported to sfmd exactly once.

import { mkdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import {
  SnowflockError,
  toSnowflockError,
  type CloneRecord,
  type Descriptor,
  type LaunchReply,
  type PrepareClones,
  type RelayReply,
  type VmEnded,
  type VmRef,
} from '@snowflock/protocol';
import type { ClusterNetwork } from '@snowflock/network';
import type { MemserverStats, MemtapFilesOptions, MemtapStats } from '@snowflock/replication';
import { createOverlay, killProcess, type BlankOverlay, type ProcessMark } from '@snowflock/vm';
import { logAbout, type Log } from '../log.ts';
import { CloneResets } from './clone-resets.ts';
import { CloneVm, type CloneVmOptions } from './clone-vm.ts';
import { ticketDirectory, vmDirectories, type HostContext } from './context.ts';
import { ForkPoint } from './fork-point.ts';
import { GroupMemtap, type GroupMemtapOptions } from './group-memtap.ts';
import { GroupRecord } from './group-record.ts';
import { exitedWith, type GroupEntry } from './journal.ts';
import type { Kept } from './sweep.ts';
import type { ForkPorts } from './vm-forks.ts';

/** QEMUs started at a time: each is a burst of CPU, and more at once than this only slows the first ones. */
const STARTS_AT_ONCE = 4;

/** Clones that say nothing may still need what others needed. */
const PUSH_LATEST_MS = 1_000;
/** A relay starts while QEMUs do, and is seldom waited for. */
const RELAY_WAIT_MS = 3_000;

const NEW_ENTRY = {
  ...{ nclones: 0, isolated: false, left: false, fetched: false },
  ...{ memtap: null, relay: null },
} as const;

export interface CloneGroupPorts extends ForkPorts {
  /** That of another ticket, on this host. */
  readonly group: (ticket: string) => CloneGroup | undefined;
  /** Gets the last record of each clone. */
  readonly onGone: (record: CloneRecord) => void;
  /** One of its clones has ended of itself, and sfmd knows. */
  readonly onEnded: (ticket: string) => void;
}

export class CloneGroup implements AsyncDisposable {
  readonly ticket: string;
  readonly clusterid: number;
  readonly clones = new Map<number, CloneVm>();
  readonly #context: HostContext;
  readonly #log: Log;
  readonly #request: PrepareClones;
  readonly #directory: string;
  readonly #prepared: Promise<void>;
  readonly #failures = new Map<number, string>();
  readonly #record: GroupRecord;
  #memtap: GroupMemtap | null = null;
  #network: ClusterNetwork | null = null;
  #disposed = false;
  #arrived = false;
  #launching: Promise<unknown> = Promise.resolve();
  readonly #forkPoint: ForkPoint;
  readonly #resets: CloneResets;
  /** Null without a disk. */
  #blank: BlankOverlay | null = null;
  readonly #ports: CloneGroupPorts;

  private constructor(context: HostContext, entry: GroupEntry, ports: CloneGroupPorts) {
    const { request } = entry;
    this.#context = context;
    this.#ports = ports;
    this.#request = request;
    this.#record = new GroupRecord(context.journal, entry);
    this.ticket = request.ticket;
    this.clusterid = request.clusterid;
    this.#log = logAbout(context.log, this);
    this.#directory = join(context.runDir, 't', ticketDirectory(request.ticket));
    this.#forkPoint = new ForkPoint({
      path: join(this.#directory, 'descriptor'),
      ticket: this.ticket,
      log: this.#log,
    });
    this.#resets = new CloneResets({
      forkPoint: () => this.#forkPoint.read(),
      record: (vmid, resetting) => this.#record.cloneBefore(vmid, { resetting }),
      replace: (clone) => this.clones.set(clone.ref.vmid, clone),
      restart: (vmid, old) => this.#restart(vmid, old),
      lost: (vm, clone, reason) => this.#resetFailed(vm, clone, reason),
      log: this.#log,
    });
    this.#prepared = entry.state === 'preparing' ? this.#prepare() : this.#adopt();
    this.#prepared.catch(() => undefined); // reported at launch
  }

  static prepare(context: HostContext, request: PrepareClones, ports: CloneGroupPorts): CloneGroup {
    const fresh = { ...NEW_ENTRY, clones: [] };
    return new CloneGroup(context, { kind: 'group', request, state: 'preparing', ...fresh }, ports);
  }

  /** Takes over what the sfld before this one had. Throws when that was in the middle of something, or its memtap is gone. */
  static async adopt(context: HostContext, entry: GroupEntry, ports: CloneGroupPorts): Promise<CloneGroup> {
    if (entry.state === 'preparing' || entry.state === 'launching')
      throw new SnowflockError('vm-failed', `sfld of host ${context.host} ended while it started its clones`);
    const group = new CloneGroup(context, entry, ports);
    try {
      await group.prepared();
    } catch (error) {
      await group[Symbol.asyncDispose]();
      throw error;
    }
    return group;
  }

  /** Resolves when every clone waits for its descriptor (or has failed to get there, which launch reports). */
  prepared(): Promise<void> {
    return this.#prepared;
  }

  /** Of a VM that comes itself, from another host. */
  get moved(): PrepareClones['moved'] {
    return this.#request.moved;
  }

  /** All of its pages are on this host: nothing is fetched from another any more. */
  get fetched(): boolean {
    return this.#record.entry.fetched;
  }

  /** The one VM of it that comes itself runs here, or did. */
  get hasArrived(): boolean {
    return this.#arrived;
  }

  /** It has no clones any more, and gets no others: they have ended, which sfmd knows, or run on other hosts. */
  get isLeft(): boolean {
    const { left, state, clones } = this.#record.entry;
    return (left || state === 'launched') && this.clones.size === 0 && clones.length === 0;
  }

  /** Its pages are all to be fetched in the background, so that it needs their host no more. */
  get detaches(): boolean {
    return this.#request.detach === true;
  }

  /** Other hosts may still be fed from here. */
  get isRelay(): boolean {
    return (this.#request.relay?.feeds.length ?? 0) > 0;
  }

  /** Null while it is prepared. */
  get memtap(): GroupMemtap | null {
    return this.#memtap;
  }

  get files(): MemtapFilesOptions {
    return this.#serving.files;
  }

  get isolated(): boolean {
    return this.#record.entry.isolated;
  }

  get request(): PrepareClones {
    return this.#request;
  }

  /** From here on pages come from a memserver of this host. */
  async feedFrom(source: { readonly port: number; readonly key: Buffer }): Promise<void> {
    await this.#memtap?.feedFrom(source);
    this.#record.before({ fetched: true });
  }

  /** A clone runs on another host: it ends here, and nobody is told. */
  async leave(vmid: number): Promise<void> {
    const clone = this.clones.get(vmid);
    if (!clone) return;
    this.clones.delete(vmid);
    await clone.leave();
    this.#record.after({
      left: true,
      clones: this.#record.entry.clones.filter((each) => each.vmid !== vmid),
    });
  }

  /** Whether the VM that was to come runs here; resolves when that is certain. */
  async settled(): Promise<boolean> {
    await this.#launching.catch(() => undefined); // whoever launches hears of it
    return this.#arrived;
  }

  /** Where the VM that they are cloned from runs. */
  get parentHost(): string {
    return this.#request.parent.host;
  }

  launch(descriptor: Descriptor): Promise<LaunchReply> {
    const launch = this.#launch(descriptor);
    this.#launching = launch;
    return launch;
  }

  async #launch(descriptor: Descriptor): Promise<LaunchReply> {
    await this.#prepared;
    const { nclones, isolated } = descriptor.header;
    this.#record.before({ state: 'launching', nclones, isolated });
    // Not waited for here: the device state is read meanwhile, and whatever touches memory waits in the memtap.
    const { unchanged } = descriptor.header;
    const earlier = unchanged && this.#ports.group(unchanged.ticket);
    const ready = this.#serving.attach(descriptor, earlier?.memtap ?? null);
    ready.catch(() => undefined); // every clone that is launched reports it; there may be none any more
    const results = this.#request.clones.map(async ({ vmid }) => {
      const clone = this.clones.get(vmid);
      if (!clone) return { vmid, ok: false, reason: this.#failures.get(vmid) ?? 'it was never prepared' };
      try {
        await Promise.all([ready, this.moved ? this.#arrive(clone, descriptor) : clone.launch(descriptor)]);
        return { vmid, ok: true };
      } catch (thrown) {
        this.#arrived = false;
        const reason = this.#sourceLost ?? toSnowflockError(thrown).message;
        this.#log.warn({ vmid, reason }, 'clone failed to start');
        clone.status = 'lost';
        await this.#remove(clone);
        return { vmid, ok: false, reason };
      }
    });
    const clones = await Promise.all(results);
    if (!this.moved) this.#forkPoint.keep(descriptor);
    this.#record.after({ state: 'launched' });
    if (!this.moved) void this.#pushLater();
    return { clones };
  }

  /** From the commit on it is here: the next sfld, too, lets it go on. */
  async #arrive(clone: CloneVm, descriptor: Descriptor): Promise<void> {
    await clone.arrive(descriptor, () => {
      this.#record.before({ state: 'launched' });
      this.#arrived = true;
    });
    // after the answer has left: how long the VM's pause was is counted until it is there
    setImmediate(() => {
      clone.settleDown(descriptor).catch(this.#logFailure(clone));
      void this.#serving.prefetch(descriptor.header.prefetch);
      void this.#pushLater();
      this.#tellArrival();
    });
  }

  /** What other clones needed is fetched when these have said something: until then it would take the CPUs from them. */
  async #pushLater(): Promise<void> {
    const spoken = [...this.clones.values()].map(({ port }) => port.spoken);
    await Promise.race([Promise.all(spoken), sleep(PUSH_LATEST_MS, undefined, { ref: false })]);
    await this.#memtap?.push();
  }

  #tellArrival(): void {
    const report = { clusterid: this.clusterid, fetched: false };
    const told = this.#context.reports.migration(this.#context.host, this.ticket, report);
    void told.then(() => {
      for (const clone of this.clones.values()) clone.admit();
    });
  }

  /** Puts a clone back to its fork point. Pages that any clone of it has touched are in this host's page cache: they are not fetched again. */
  async reset(vmid: number): Promise<void> {
    await this.#prepared;
    const clone = this.clones.get(vmid);
    if (!clone || clone.exit || clone.status !== 'running')
      throw new SnowflockError('no-such-vm', `VM ${this.clusterid}:${vmid} does not run here`);
    if (this.moved)
      throw new SnowflockError(
        'unavailable',
        `VM ${this.clusterid}:${vmid} was migrated, and its fork point did not come along; it cannot be reset`,
      );
    await this.#resets.reset(clone);
  }

  async #restart(vmid: number, old: CloneVm): Promise<CloneVm> {
    const [memtap, network] = [this.#memtap, this.#network];
    const asked = this.#request.clones.find((each) => each.vmid === vmid);
    const wanted = !this.#disposed && this.#sourceLost === null && this.clones.get(vmid) === old;
    if (!wanted || !asked || !memtap || !network)
      throw new SnowflockError('vm-failed', this.#sourceLost ?? 'it was ended meanwhile');
    // from here on its end is nobody's loss
    this.clones.delete(vmid);
    await old[Symbol.asyncDispose]();
    this.#record.forget(vmid);
    await network.addTap({ vmid });
    try {
      const fresh = await CloneVm.prepare(this.#context, this.#cloneOptions(asked, { memtap, network }));
      this.#ownClone(fresh);
      return fresh;
    } catch (error) {
      await this.#context.networks.detach(old.ref);
      throw error;
    }
  }

  async #resetFailed(ref: VmRef, clone: CloneVm | null, reason: string): Promise<void> {
    const now = clone ?? this.clones.get(ref.vmid);
    if (now) {
      now.status = 'lost';
      await this.#remove(now);
    }
    if (!this.#disposed)
      void this.#context.reports.ended(ref, { how: 'lost', reason: this.#sourceLost ?? reason });
  }

  /** Because sfmd says so: nobody is told of its end. Idempotent, and no error for a clone of another ticket. */
  async destroyClone(vmid: number): Promise<void> {
    await Promise.allSettled([this.#prepared]);
    // Twice: a reset that this cuts short may have come as far as a new one.
    for (const wait of [null, this.#resets.over(vmid)]) {
      await wait;
      const clone = this.clones.get(vmid);
      if (clone) await this.#remove(clone);
    }
  }

  /** What its memtap counts; null when it does not say. */
  async stats(): Promise<MemtapStats | null> {
    return (await this.#memtap?.stats()) ?? null;
  }

  /** Where its pages are passed on from this host, to one of those that it feeds. */
  async relaySource(): Promise<RelayReply> {
    if (this.#memtap) return this.#memtap.relaySource();
    throw new SnowflockError('no-such-ticket', `ticket ${this.ticket} is not prepared here yet`);
  }

  /** What it passes on; null: nothing. */
  async relayStats(): Promise<MemserverStats | null> {
    return (await this.#memtap?.relayStats()) ?? null;
  }

  async records(): Promise<CloneRecord[]> {
    const replication = await this.stats();
    return [...this.clones.values()].map((clone) => fullRecord(clone, this.fetched, replication));
  }

  keep(kept: Kept): void {
    kept.directories.add(this.#directory);
    kept.clusters.add(this.clusterid);
    for (const pid of this.#memtap?.pids ?? []) kept.pids.add(pid);
    for (const clone of this.clones.values()) clone.keep(kept);
  }

  /** Lets go of all of it, for the next sfld. */
  async detach(): Promise<void> {
    await Promise.allSettled([this.#prepared, this.#resets.over()]);
    this.#close();
    await Promise.all([...this.clones.values()].map((clone) => clone.detach()));
    this.#memtap?.detach();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#close();
    await Promise.allSettled([this.#prepared, this.#forkPoint.settled()]);
    for (const wait of [null, this.#resets.over()]) {
      await wait;
      await Promise.all([...this.clones.values()].map((clone) => this.#remove(clone)));
    }
    await this.#memtap?.[Symbol.asyncDispose]();
    await GroupMemtap.cleanUp(this.#directory);
    await rm(this.#directory, { recursive: true, force: true });
    if (this.#network) await this.#context.networks.release(this.clusterid);
    this.#record.remove();
  }

  /** Whatever ends from here on ends because it is meant to. */
  #close(): void {
    this.#disposed = true;
    this.#record.close();
    this.#memtap?.close();
  }

  /** Of a group that is prepared. */
  get #serving(): GroupMemtap {
    if (!this.#memtap) throw new SnowflockError('internal', `ticket ${this.ticket} has no memtap`);
    return this.#memtap;
  }

  get #sourceLost(): string | null {
    return this.#memtap?.sourceLost ?? null;
  }

  get #memtapOptions(): GroupMemtapOptions {
    const onSourceLost = (): void => {
      for (const clone of this.clones.values()) clone[Symbol.asyncDispose]().catch(this.#logFailure(clone));
    };
    return {
      context: this.#context,
      request: this.#request,
      directory: this.#directory,
      log: this.#log,
      onRelay: (relay) => this.#record.after({ relay }),
      onSourceLost,
    };
  }

  #cloneOptions(
    { vmid, vcpus }: PrepareClones['clones'][number],
    { memtap, network }: { memtap: GroupMemtap; network: ClusterNetwork },
  ): CloneVmOptions {
    const { shape, diskBytes, moved } = this.#request;
    const { ticket, parent } = moved?.origin ?? this.#request;
    return {
      ref: { clusterid: this.clusterid, vmid },
      ...{ ticket, parent, moved: moved !== undefined },
      shape,
      vcpus,
      upstream: { ticket: this.ticket, ...memtap.files },
      blankDisk: this.#blank,
      diskBytes,
      network,
      sources: this.#ports.sources,
      earlier: this.#ports.earlier,
      onFork: this.#ports.onFork,
      onSpawned: (process) => this.#record.add(vmid, process),
      record: (fork) =>
        fork ? this.#record.cloneBefore(vmid, { fork }) : this.#record.cloneAfter(vmid, { fork }),
      recordExit: (exit) => this.#record.cloneBefore(vmid, { exit }),
    };
  }

  #ownClone(clone: CloneVm): void {
    const { pid, ref } = clone;
    this.clones.set(ref.vmid, clone);
    clone.ended
      .then(async (end) => {
        await this.#resets.over(ref.vmid);
        // After a reset it is another one, in the same QEMU.
        const now = this.clones.get(ref.vmid);
        if (now?.pid === pid) await this.#onEnd(now, end.byGuest ? 'powered-off' : 'lost', end.reason);
      })
      .catch(this.#logFailure(clone));
    if (this.#sourceLost !== null) clone[Symbol.asyncDispose]().catch(this.#logFailure(clone));
  }

  async #adopt(): Promise<void> {
    const { state, nclones, isolated, clones, ...marks } = this.#record.entry;
    const memtap = await GroupMemtap.adopt(this.#memtapOptions, marks);
    this.#memtap = memtap;
    const network = await this.#context.networks.acquire(this.clusterid);
    this.#network = network;
    this.#blank = await this.#makeBlank();
    const lost: { vmid: number; process: ProcessMark; reason: string }[] = [];
    const adopted = clones.map(async ({ vmid, process, fork, exit, resetting }) => {
      const asked = this.#request.clones.find((each) => each.vmid === vmid);
      if (!asked) return;
      if (exit) return this.#gone(vmid, process, exitedWith(exit));
      if (resetting) return lost.push({ vmid, process, reason: 'sfld ended while it was being reset' });
      const options = this.#cloneOptions(asked, { memtap, network });
      const launched = state === 'launched';
      try {
        this.#ownClone(
          await CloneVm.adopt(this.#context, options, { mark: process, launched, nclones, isolated, fork }),
        );
      } catch (thrown) {
        lost.push({ vmid, process, reason: toSnowflockError(thrown).message });
      }
    });
    await Promise.all(adopted);
    if (this.moved && state === 'launched') {
      this.#arrived = true;
      this.#tellArrival();
    }
    await memtap.askForSource();
    await Promise.all(
      lost.map(({ vmid, process, reason }) =>
        this.#gone(vmid, process, { how: 'lost', reason: this.#sourceLost ?? reason }),
      ),
    );
  }

  /** A clone that ended while no sfld ran here, cannot be reached any more, or was exiting. */
  async #gone(vmid: number, process: ProcessMark, ended: VmEnded): Promise<void> {
    const ref = { clusterid: this.clusterid, vmid };
    const { how, reason } = ended;
    this.#log.warn({ vmid, how, reason }, 'a clone of the last sfld has ended');
    this.#failures.set(vmid, reason);
    killProcess(process);
    await this.#context.networks.detach(ref);
    const directories = vmDirectories(this.#context, ref);
    for (const path of [directories.run, directories.state]) await rm(path, { recursive: true, force: true });
    const told = this.#context.reports.ended(ref, ended);
    void (how === 'exited' ? told.then(() => this.#record.forget(vmid)) : this.#record.forget(vmid));
  }

  async #prepare(): Promise<void> {
    this.#record.before({});
    const network = await this.#context.networks.acquire(this.clusterid);
    this.#network = network;
    const { clones } = this.#request;
    await mkdir(this.#directory, { recursive: true, mode: 0o700 });
    const [started, taps, blank] = await Promise.allSettled([
      GroupMemtap.start(this.#memtapOptions),
      network.addTaps(clones),
      this.#makeBlank(),
    ]);
    // owned first: whatever fails after it, the group's end ends it
    if (started.status === 'fulfilled') this.#memtap = started.value;
    for (const part of [started, taps, blank]) if (part.status === 'rejected') throw part.reason;
    if (blank.status === 'fulfilled') this.#blank = blank.value;
    const memtap = this.#serving;
    this.#record.before({ memtap: memtap.mark });
    const connected = memtap.connectAhead();
    const waiting = [...clones];
    const starter = async (): Promise<void> => {
      for (let next = waiting.shift(); next && !this.#disposed; next = waiting.shift()) {
        try {
          const options = this.#cloneOptions(next, { memtap, network });
          this.#ownClone(await CloneVm.prepare(this.#context, options));
        } catch (thrown) {
          const reason = toSnowflockError(thrown).message;
          // told to whoever forks, which may be much later or never
          this.#log.warn({ vmid: next.vmid, reason }, 'clone could not be prepared');
          this.#failures.set(next.vmid, reason);
        }
      }
    };
    await Promise.all(Array.from({ length: STARTS_AT_ONCE }, starter));
    // A fork that comes before that would have its pages from the parent, for good.
    if (this.#request.relay) await Promise.race([connected, sleep(RELAY_WAIT_MS, undefined, { ref: false })]);
    // The rehearsal would take the CPUs from the load of the device state, while the VM is paused.
    if (this.moved) await connected.then(() => memtap.rehearsed());
    this.#record.before({ state: 'prepared' });
  }

  /** What the disks of its clones are copies of. */
  async #makeBlank(): Promise<BlankOverlay | null> {
    const { diskBytes: sizeBytes } = this.#request;
    if (sizeBytes === 0) return null;
    const path = join(this.#directory, 'blank.qcow2');
    const under = { backing: GroupMemtap.diskPath(this.#directory), backingFormat: 'raw' as const };
    await createOverlay({ path, ...under, sizeBytes });
    return { path, ...under };
  }

  /** A clone ended by itself, by ic_exit, or with its source: frees what it held here and tells sfmd. */
  async #onEnd(clone: CloneVm, how: VmEnded['how'], reason: string): Promise<void> {
    const launched = clone.status === 'running';
    const goes = (): boolean => this.#disposed || this.clones.get(clone.ref.vmid) !== clone;
    if (goes()) return;
    if (how === 'lost' && !clone.exit) await this.#memtap?.askForSource();
    if (goes()) return;
    if (!launched) {
      // Not redeemed yet, or launch() reports it.
      this.#failures.set(clone.ref.vmid, this.#sourceLost ?? reason);
      if (clone.status === 'preparing') await this.#remove(clone);
      return;
    }
    const ended: VmEnded = clone.exit
      ? exitedWith(clone.exit)
      : { how: this.#sourceLost === null ? how : 'lost', reason: this.#sourceLost ?? reason };
    clone.status = ended.how === 'lost' ? 'lost' : 'exited';
    await this.#remove(clone);
    await this.#context.reports.ended(clone.ref, ended);
    this.#record.forget(clone.ref.vmid);
    this.#ports.onEnded(this.ticket);
  }

  /** For what nobody waits for: what stays behind goes with the cluster, or with the next start of sfld. */
  #logFailure(clone: CloneVm): (error: unknown) => void {
    return (error) =>
      this.#log.error({ vmid: clone.ref.vmid, err: error }, 'a clone could not be cleaned up');
  }

  async #remove(clone: CloneVm): Promise<void> {
    this.clones.delete(clone.ref.vmid);
    const replication = await this.stats();
    if (replication) this.#memtap?.noteDeafness(replication);
    await clone[Symbol.asyncDispose]();
    // The next sfld, too, would tell sfmd what it exited with.
    if (!clone.exit) this.#record.forget(clone.ref.vmid);
    const status = clone.status === 'running' ? 'exited' : clone.status;
    this.#ports.onGone({ ...fullRecord(clone, this.fetched, replication), status });
  }
}

function fullRecord(clone: CloneVm, detached: boolean, replication: MemtapStats | null): CloneRecord {
  const { bytes = 0, waits = null } = replication?.byProcess[String(clone.pid)] ?? {};
  const fetchedBytes = replication === null ? null : bytes;
  return { ...clone.record(), fetchedBytes, waits, detached, replication };
}
