// The clones of one ticket on this host, and the memtap that serves them all.
//
//   preparing ──▶ prepared ──launch──▶ running ──dispose──▶ gone
//
// Invariant: the memtap outlives its clones; a clone that ends is reported to sfmd exactly once.

import { mkdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import {
  formatVmRef,
  NoReply,
  SnowflockError,
  toSnowflockError,
  type CloneRecord,
  type Descriptor,
  type LaunchReply,
  type PrepareClones,
  type VmEnded,
} from '@snowflock/protocol';
import { cleanupMount, MemtapProcess, type MemtapStats } from '@snowflock/replication';
import { CloneVm } from './clone-vm.ts';
import { ticketDirectory, type HostContext } from './context.ts';

const REPORT_TIMEOUT_MS = 10_000;
/** QEMUs started at a time: each is a burst of CPU, and more at once than this only slows the first ones. */
const STARTS_AT_ONCE = 4;

export class CloneGroup implements AsyncDisposable {
  readonly ticket: string;
  readonly clusterid: number;
  readonly clones = new Map<number, CloneVm>();
  readonly #context: HostContext;
  readonly #request: PrepareClones;
  readonly #directory: string;
  readonly #prepared: Promise<void>;
  readonly #failures = new Map<number, string>();
  #memtap: MemtapProcess | null = null;
  #sourceLost: string | null = null;
  #networkAcquired = false;
  #disposed = false;

  readonly #onGone: (record: CloneRecord) => void;

  /** `onGone` gets the last record of each clone. */
  constructor(context: HostContext, request: PrepareClones, onGone: (record: CloneRecord) => void) {
    this.#context = context;
    this.#onGone = onGone;
    this.#request = request;
    this.ticket = request.ticket;
    this.clusterid = request.clusterid;
    this.#directory = join(context.runDir, 't', ticketDirectory(request.ticket));
    this.#prepared = this.#prepare();
    this.#prepared.catch(() => undefined); // reported at launch
  }

  /** Resolves when every clone waits for its descriptor (or has failed to get there, which launch reports). */
  prepared(): Promise<void> {
    return this.#prepared;
  }

  async launch(descriptor: Descriptor): Promise<LaunchReply> {
    await this.#prepared;
    const memtap = this.#memtap;
    if (!memtap) throw new SnowflockError('internal', `ticket ${this.ticket} has no memtap`);
    const { source } = descriptor.header;
    // Not waited for here: the device state is read meanwhile, and whatever touches memory waits in the memtap.
    const attached = memtap.attach({
      sources: [{ address: source.address, port: source.port }],
      key: Buffer.from(source.keyHex, 'hex'),
      presence: descriptor.presence,
      prefetch: descriptor.header.prefetch,
    });
    attached.catch(() => undefined); // every clone that is launched reports it; there may be none any more
    const results = this.#request.clones.map(async ({ vmid }) => {
      const clone = this.clones.get(vmid);
      if (!clone) return { vmid, ok: false, reason: this.#failures.get(vmid) ?? 'it was never prepared' };
      try {
        await Promise.all([attached, clone.launch(descriptor)]);
        return { vmid, ok: true };
      } catch (thrown) {
        const reason = this.#sourceLost ?? toSnowflockError(thrown).message;
        this.#context.log.warn(
          { clusterid: this.clusterid, vmid, ticket: this.ticket, reason },
          'clone failed to start',
        );
        clone.status = 'lost';
        await this.#remove(clone);
        return { vmid, ok: false, reason };
      }
    });
    return { clones: await Promise.all(results) };
  }

  async records(): Promise<CloneRecord[]> {
    const replication = await this.#replication();
    return [...this.clones.values()].map((clone) => fullRecord(clone, replication));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#disposed = true;
    await Promise.allSettled([this.#prepared]);
    await Promise.all([...this.clones.values()].map((clone) => this.#remove(clone)));
    await this.#memtap?.[Symbol.asyncDispose]();
    await cleanupMount(join(this.#directory, 'm'));
    await rm(this.#directory, { recursive: true, force: true });
    if (this.#networkAcquired) await this.#context.networks.release(this.clusterid);
  }

  async #prepare(): Promise<void> {
    const network = await this.#context.networks.acquire(this.clusterid);
    this.#networkAcquired = true;
    const { shape, clones, diskBytes } = this.#request;
    const mount = join(this.#directory, 'm');
    await mkdir(mount, { recursive: true, mode: 0o700 });
    const [memtap] = await Promise.all([
      MemtapProcess.start({
        controlPath: join(this.#directory, 'ctl'),
        mountPath: mount,
        ramBytes: shape.memoryMib * 2 ** 20,
        diskBytes,
        logPath: join(this.#context.runDir, 'memtap.log'),
      }),
      network.addTaps(clones),
    ]);
    this.#memtap = memtap;
    memtap.onSourceLost(({ reason }) => this.#onSourceLost(reason));
    void memtap.exited.then(() => this.#onSourceLost('its memtap ended'));
    const waiting = [...clones];
    const starter = async (): Promise<void> => {
      for (let next = waiting.shift(); next && !this.#disposed; next = waiting.shift()) {
        const { vmid, vcpus } = next;
        try {
          const clone = await CloneVm.prepare(this.#context, {
            ref: { clusterid: this.clusterid, vmid },
            ticket: this.ticket,
            shape,
            vcpus,
            ramFile: memtap.ramPath,
            diskFile: diskBytes > 0 ? memtap.diskPath : null,
            diskBytes,
            network,
          });
          this.clones.set(vmid, clone);
          clone.ended
            .then((end) => this.#onEnd(clone, end.exitCode === 0 ? 'powered-off' : 'lost', end.reason))
            .catch(this.#logFailure(clone));
        } catch (thrown) {
          this.#failures.set(vmid, toSnowflockError(thrown).message);
        }
      }
    };
    await Promise.all(Array.from({ length: STARTS_AT_ONCE }, starter));
  }

  #onSourceLost(reason: string): void {
    if (this.#disposed || this.#sourceLost !== null) return;
    this.#sourceLost = `the parent's memory can no longer be fetched: ${reason}`;
    this.#context.log.error(
      { clusterid: this.clusterid, ticket: this.ticket, reason },
      'source lost; its clones end',
    );
    for (const clone of this.clones.values()) clone[Symbol.asyncDispose]().catch(this.#logFailure(clone));
  }

  /** A clone ended by itself, by ic_exit, or with its source: frees what it held here and tells sfmd. */
  async #onEnd(clone: CloneVm, how: VmEnded['how'], reason: string): Promise<void> {
    const launched = clone.status === 'running';
    if (this.#disposed || !this.clones.has(clone.ref.vmid)) return;
    if (!launched) {
      // Not redeemed yet, or launch() reports it.
      this.#failures.set(clone.ref.vmid, this.#sourceLost ?? reason);
      if (clone.status === 'preparing') await this.#remove(clone);
      return;
    }
    const ended: VmEnded = clone.exitCalled
      ? { how: 'exited', reason: 'ic_exit' }
      : { how: this.#sourceLost === null ? how : 'lost', reason: this.#sourceLost ?? reason };
    clone.status = ended.how === 'lost' ? 'lost' : 'exited';
    await this.#remove(clone);
    try {
      await this.#context.masterDaemon.request({
        method: 'POST',
        path: `/v1/clusters/${this.clusterid}/vms/${clone.ref.vmid}/ended`,
        body: ended,
        reply: NoReply,
        timeoutMs: REPORT_TIMEOUT_MS,
      });
    } catch (error) {
      this.#context.log.error(
        { vm: formatVmRef(clone.ref), err: error },
        'sfmd could not be told of the end of a clone',
      );
    }
  }

  /** For what nobody waits for: what stays behind goes with the cluster, or with the next start of sfld. */
  #logFailure(clone: CloneVm): (error: unknown) => void {
    return (error) =>
      this.#context.log.error({ vm: formatVmRef(clone.ref), err: error }, 'a clone could not be cleaned up');
  }

  async #remove(clone: CloneVm): Promise<void> {
    this.clones.delete(clone.ref.vmid);
    const replication = await this.#replication();
    await clone[Symbol.asyncDispose]();
    this.#onGone(fullRecord(clone, replication));
  }

  async #replication(): Promise<MemtapStats | null> {
    if (this.#sourceLost !== null) return null;
    try {
      return (await this.#memtap?.stats()) ?? null;
    } catch (error) {
      this.#context.log.debug({ ticket: this.ticket, err: error }, 'the memtap gave no figures');
      return null;
    }
  }
}

function fullRecord(clone: CloneVm, replication: MemtapStats | null): CloneRecord {
  const fetchedBytes = replication === null ? null : (replication.bytesByProcess[String(clone.pid)] ?? 0);
  return { ...clone.record(), fetchedBytes, replication };
}
