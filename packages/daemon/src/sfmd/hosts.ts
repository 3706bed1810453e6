// What sfmd asks of the hosts' sflds. One connection per host, kept alive; every call with a deadline.
//
// Order per host: the destruction of a ticket (or cluster) is sent only when no preparation for it is under way there, so
// that nothing is built after it was torn down.

import {
  CheckpointFrozen,
  CloneRecord,
  ControlClient,
  formatVmRef,
  MulticastHeard,
  NoReply,
  SnowflockError,
  MasterStarted,
  type PrepareClones,
  type PrepareSource,
  type ServeCheckpoint,
  type StartMaster,
  type TlsIdentity,
  SendVmReply,
  type SendVm,
  type TryMulticast,
  type VmRef,
  type WriteCheckpoint,
} from '@snowflock/protocol';
import type { Cleanup } from '@snowflock/cluster';

/** A QEMU process starts in 60 ms, and its image may have to be opened over a slow disk. */
const START_MASTER_TIMEOUT_MS = 60_000;
/** As long, times the clones of one host that start one after the other. */
const PREPARE_TIMEOUT_MS = 30_000;
/** Until the VM goes on: a process starts, the VM is frozen. */
const FREEZE_TIMEOUT_MS = 30_000;
/** Results of its clones go along, before it is paused. */
const SEND_VM_TIMEOUT_MS = 300_000;
/** Somebody waits and looks. */
const CLONES_TIMEOUT_MS = 2_000;
/** Beyond the time that a host listens for: it may be busy. */
const MULTICAST_TRY_MARGIN_MS = 5_000;
/** Killing processes and unmounting; a host that takes longer is asked again. */
const DESTROY_TIMEOUT_MS = 10_000;

export interface HostAddress {
  readonly host: string;
  readonly address: string;
  readonly sfldPort: number;
}

export type Destroyed = Pick<Cleanup, 'clusterid' | 'ticket' | 'vmid'>;

export interface Hosts extends Disposable {
  startMaster(at: HostAddress, body: StartMaster, signal: AbortSignal): Promise<MasterStarted>;
  prepareSource(at: HostAddress, body: PrepareSource, signal: AbortSignal): Promise<void>;
  prepareClones(at: HostAddress, body: PrepareClones, signal: AbortSignal): Promise<void>;
  /** Answers when the VM goes on; the checkpoint is written then. */
  writeCheckpoint(at: HostAddress, body: WriteCheckpoint, signal: AbortSignal): Promise<CheckpointFrozen>;
  serveCheckpoint(
    at: HostAddress,
    what: ServeCheckpoint & { readonly name: string },
    signal: AbortSignal,
  ): Promise<void>;
  /** Idempotent. */
  deleteCheckpoint(at: HostAddress, what: { name: string; id: string }, signal: AbortSignal): Promise<void>;
  /** Answers when it runs again. */
  resetVm(at: HostAddress, vm: VmRef, signal: AbortSignal): Promise<void>;
  /** Answers what became of it. The end of its cluster does not wait for it. */
  sendVm(at: HostAddress, vm: VmRef, body: SendVm, signal: AbortSignal): Promise<SendVmReply>;
  /** What it heard of the one that sends. */
  tryMulticast(at: HostAddress, body: TryMulticast, signal: AbortSignal): Promise<MulticastHeard>;
  /** What clones run there, and what they fetched. */
  clones(at: HostAddress, signal: AbortSignal): Promise<CloneRecord[]>;
  /** Of a ticket, of a VM, or with null for both of the whole cluster. Idempotent. */
  destroy(at: HostAddress, what: Destroyed, signal: AbortSignal): Promise<void>;
}

function pathOf({ clusterid, ticket, vmid }: Destroyed): string {
  if (vmid !== null) return `/v1/vms/${clusterid}:${vmid}`;
  return ticket === null ? `/v1/clusters/${clusterid}` : `/v1/tickets/${ticket}`;
}

export class HostClients implements Hosts {
  #tls: TlsIdentity;
  readonly #clients = new Map<string, { readonly at: HostAddress; readonly client: ControlClient }>();
  /** Preparations under way, by host and cluster. */
  readonly #building = new Map<string, Set<Promise<unknown>>>();

  constructor(tls: TlsIdentity) {
    this.#tls = tls;
  }

  startMaster(at: HostAddress, body: StartMaster, signal: AbortSignal): Promise<MasterStarted> {
    const started = this.#client(at).request({
      method: 'POST',
      path: '/v1/vms',
      body,
      reply: MasterStarted,
      timeoutMs: START_MASTER_TIMEOUT_MS,
      signal,
    });
    return this.#build(at, body.clusterid, started);
  }

  prepareSource(at: HostAddress, body: PrepareSource, signal: AbortSignal): Promise<void> {
    return this.#build(
      at,
      body.clusterid,
      this.#post(at, '/v1/sources', body, { timeoutMs: PREPARE_TIMEOUT_MS, signal }),
    );
  }

  prepareClones(at: HostAddress, body: PrepareClones, signal: AbortSignal): Promise<void> {
    return this.#build(
      at,
      body.clusterid,
      this.#post(at, '/v1/tickets', body, { timeoutMs: PREPARE_TIMEOUT_MS, signal }),
    );
  }

  writeCheckpoint(at: HostAddress, body: WriteCheckpoint, signal: AbortSignal): Promise<CheckpointFrozen> {
    return this.#client(at).request({
      method: 'POST',
      path: '/v1/checkpoints',
      body,
      reply: CheckpointFrozen,
      timeoutMs: FREEZE_TIMEOUT_MS,
      signal,
    });
  }

  serveCheckpoint(
    at: HostAddress,
    { name, ...body }: ServeCheckpoint & { readonly name: string },
    signal: AbortSignal,
  ): Promise<void> {
    const limits = { timeoutMs: PREPARE_TIMEOUT_MS, signal };
    return this.#build(at, body.clusterid, this.#post(at, `/v1/checkpoints/${name}/serve`, body, limits));
  }

  async deleteCheckpoint(
    at: HostAddress,
    { name, id }: { name: string; id: string },
    signal: AbortSignal,
  ): Promise<void> {
    await this.#client(at).request({
      method: 'DELETE',
      path: `/v1/checkpoints/${name}?id=${id}`,
      reply: NoReply,
      timeoutMs: DESTROY_TIMEOUT_MS,
      signal,
    });
  }

  tryMulticast(at: HostAddress, body: TryMulticast, signal: AbortSignal): Promise<MulticastHeard> {
    return this.#client(at).request({
      method: 'POST',
      path: '/v1/multicast-tries',
      body,
      reply: MulticastHeard,
      timeoutMs: body.listenMs + MULTICAST_TRY_MARGIN_MS,
      signal,
    });
  }

  resetVm(at: HostAddress, vm: VmRef, signal: AbortSignal): Promise<void> {
    const limits = { timeoutMs: PREPARE_TIMEOUT_MS, signal };
    return this.#build(at, vm.clusterid, this.#post(at, `/v1/vms/${formatVmRef(vm)}/reset`, {}, limits));
  }

  sendVm(at: HostAddress, vm: VmRef, body: SendVm, signal: AbortSignal): Promise<SendVmReply> {
    return this.#client(at).request({
      method: 'POST',
      path: `/v1/vms/${formatVmRef(vm)}/migrate`,
      body,
      reply: SendVmReply,
      timeoutMs: SEND_VM_TIMEOUT_MS,
      signal,
    });
  }

  clones(at: HostAddress, signal: AbortSignal): Promise<CloneRecord[]> {
    return this.#client(at).request({
      method: 'GET',
      path: '/v1/clones',
      reply: CloneRecord.array(),
      timeoutMs: CLONES_TIMEOUT_MS,
      signal,
    });
  }

  async destroy(at: HostAddress, what: Destroyed, signal: AbortSignal): Promise<void> {
    await Promise.allSettled([...(this.#building.get(`${at.host}/${what.clusterid}`) ?? [])]);
    await this.#client(at).request({
      method: 'DELETE',
      path: pathOf(what),
      reply: NoReply,
      timeoutMs: DESTROY_TIMEOUT_MS,
      signal,
    });
  }

  /** To be called when more certificates are revoked. */
  dropRevoked(): void {
    for (const { client } of this.#clients.values()) client.dropRevoked();
  }

  /** Another certificate for the connections that are made from now on. */
  renewTls(tls: TlsIdentity): void {
    this.#tls = { ...this.#tls, ...tls };
    for (const { client } of this.#clients.values()) client.renewTls(tls);
  }

  [Symbol.dispose](): void {
    for (const { client } of this.#clients.values()) client.close();
    this.#clients.clear();
  }

  #post(
    at: HostAddress,
    path: string,
    body: unknown,
    limits: { timeoutMs: number; signal: AbortSignal },
  ): Promise<void> {
    return this.#client(at).request({ method: 'POST', path, body, reply: NoReply, ...limits });
  }

  async #build<T>(at: HostAddress, clusterid: number, work: Promise<T>): Promise<T> {
    const key = `${at.host}/${clusterid}`;
    const under = this.#building.get(key) ?? new Set<Promise<unknown>>();
    this.#building.set(key, under.add(work));
    try {
      return await work;
    } finally {
      under.delete(work);
      if (under.size === 0) this.#building.delete(key);
    }
  }

  #client(at: HostAddress): ControlClient {
    const known = this.#clients.get(at.host);
    if (known?.at.address === at.address && known.at.sfldPort === at.sfldPort) return known.client;
    known?.client.close();
    const { address, sfldPort: port, host } = at;
    if (port === 0)
      throw new SnowflockError(
        'host-down',
        `host ${host} has not reported itself yet; is sfld started there?`,
      );
    const client = new ControlClient({ address, port, tls: this.#tls, host });
    this.#clients.set(host, { at, client });
    return client;
  }
}
