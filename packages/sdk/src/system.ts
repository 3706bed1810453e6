// A SnowFlock system, as a program on a host (or with a certificate, anywhere) sees it.
//
//   await using system = System.connect();
//   await using master = await system.seed({ diskImage: 'debian', vcpus: 1, memoryMib: 256 });
//   console.log((await master.exec(['uname', '-r'])).stdout.toString());
//
// Owns the connections. Every failure is a SnowflockError with a code of packages/protocol/src/errors.ts.

import {
  NoReply,
  parseVmRef,
  readSeedConfig,
  RouterInfo,
  SeedReply,
  SystemState,
  type ControlTarget,
  type SeedRequest,
  type VmRef,
} from '@snowflock/protocol';
import { z } from 'zod';
import type { CallOptions } from './call-options.ts';
import { Checkpoints } from './checkpoints.ts';
import { EventStream, type EventOptions } from './events.ts';
import { MasterVm } from './master-vm.ts';
import { localReach, type Reach, remoteReach } from './reach.ts';
import { findSocket } from './socket.ts';
import { Vm } from './vm.ts';

const STATE_TIMEOUT_MS = 10_000;
/** Placing and starting a VM; its image may have to be read from a slow disk. Not its boot. */
const SEED_TIMEOUT_MS = 120_000;
/** Ends every VM of the cluster, on all hosts. */
const SHUTDOWN_TIMEOUT_MS = 60_000;

/** Where the system is: the unix socket of an sfld, or sfmd over TCP with a certificate of `snowflock cert issue`. */
export type ConnectOptions = { readonly socketPath?: string } | Extract<ControlTarget, { address: string }>;

export class System implements AsyncDisposable {
  readonly #reach: Reach;
  readonly checkpoints: Checkpoints;

  private constructor(reach: Reach) {
    this.#reach = reach;
    this.checkpoints = new Checkpoints(reach);
  }

  /**
   * By default the sfld of this machine: SNOWFLOCK_SOCKET, or /run/snowflock/sfld.sock. Connections are made when something is
   * asked for.
   */
  static connect(options: ConnectOptions = {}): System {
    if ('address' in options) return new System(remoteReach(options));
    return new System(
      localReach(findSocket({ named: options.socketPath, env: process.env.SNOWFLOCK_SOCKET })),
    );
  }

  /** The router of each cluster, and the ports of hosts that lead to VMs, as the hosts told last. */
  routers({ signal }: CallOptions = {}): Promise<RouterInfo[]> {
    return this.#reach.ask({
      method: 'GET',
      path: '/routers',
      reply: z.array(RouterInfo),
      timeoutMs: STATE_TIMEOUT_MS,
      ...(signal && { signal }),
    });
  }

  /** Hosts, clusters, VMs and tickets; `fetched`: with what each running clone has fetched, which its host is asked. */
  state({
    signal,
    fetched = false,
  }: CallOptions & { readonly fetched?: boolean } = {}): Promise<SystemState> {
    return this.#reach.ask({
      method: 'GET',
      path: `/state${fetched ? '?fetched=1' : ''}`,
      reply: SystemState,
      timeoutMs: STATE_TIMEOUT_MS,
      ...(signal && { signal }),
    });
  }

  /**
   * Starts the master VM of a new cluster, from an image or from a checkpoint: it boots when this resolves, or goes on where the checkpoint was
   * made. Disposing of it shuts the cluster down.
   */
  async seed(from: SeedRequest, { signal }: CallOptions = {}): Promise<MasterVm> {
    const reply = await this.#reach.ask({
      method: 'POST',
      path: '/clusters',
      body: from,
      reply: SeedReply,
      timeoutMs: SEED_TIMEOUT_MS,
      ...(signal && { signal }),
    });
    return new MasterVm(this.#reach, reply);
  }

  /** seed(), of a configuration file as sfseed takes it. */
  async seedFrom(configPath: string, options: CallOptions = {}): Promise<MasterVm> {
    return this.seed(readSeedConfig(configPath), options);
  }

  /** A VM that is there, by its name: `0:1`, or its numbers. Nothing is asked yet. */
  vm(name: string | VmRef): Vm {
    return new Vm(this.#reach, typeof name === 'string' ? parseVmRef(name) : name);
  }

  /** The master VM of a cluster that is there. */
  async masterVm(clusterid: number, options: CallOptions = {}): Promise<MasterVm> {
    const { host, ip } = await this.vm({ clusterid, vmid: 0 }).state(options);
    return new MasterVm(this.#reach, { clusterid, vmid: 0, host, ip });
  }

  /** Shuts a cluster down: refused with `tickets-outstanding` while it has clones, unless forced. */
  async shutdown(clusterid: number, options: CallOptions & { readonly force?: boolean } = {}): Promise<void> {
    const { force = false, signal } = options;
    await this.#reach.ask({
      method: 'DELETE',
      path: `/clusters/${clusterid}${force ? '?force=1' : ''}`,
      reply: NoReply,
      timeoutMs: SHUTDOWN_TIMEOUT_MS,
      ...(signal && { signal }),
    });
  }

  /** What happens, from the moment that this resolves. */
  events(options: EventOptions = {}): Promise<EventStream> {
    return EventStream.open(this.#reach, options);
  }

  close(): void {
    this.#reach.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    this.close();
    return Promise.resolve();
  }
}
