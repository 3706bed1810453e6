// A master VM, with the tickets of its cluster.

import {
  NoReply,
  SnowflockError,
  TicketGrant,
  TicketInfo,
  TicketList,
  type ControlRequest,
  type SeedReply,
} from '@snowflock/protocol';
import type { Reach } from './reach.ts';
import type { CallOptions } from './call-options.ts';
import { Vm } from './vm.ts';

/** What sfmd answers from what it knows. */
const ANSWER_TIMEOUT_MS = 10_000;
/** What hosts have to do first: end VMs. */
const CALL_TIMEOUT_MS = 60_000;
/** Blocking calls wait for other users' resources or for computations: days. */
const BLOCKING_TIMEOUT_MS = 7 * 24 * 3600 * 1000;

export interface TicketOptions extends CallOptions {
  /** Count processors, not clones. */
  readonly procs?: boolean;
  /** From 0 on: any number between min and the one asked for will do. By default -1: all of them. */
  readonly min?: number;
  /** Wait until they are there, by default; else answer at once with what there is, maybe nothing. */
  readonly block?: boolean;
}

export class MasterVm extends Vm implements AsyncDisposable {
  readonly host: string;
  readonly ip: string;

  constructor(reach: Reach, { clusterid, vmid, host, ip }: SeedReply) {
    super(reach, { clusterid, vmid });
    this.host = host;
    this.ip = ip;
  }

  /** A clone of this cluster. */
  clone(vmid: number): Vm {
    return new Vm(this.reach, { clusterid: this.clusterid, vmid });
  }

  /** Reserves resources for clones. A program in the VM may fork with the ticket. */
  requestTicket(nclones: number, options: TicketOptions = {}): Promise<TicketGrant> {
    const { procs = false, min = -1, block = true, signal } = options;
    return this.#ask({
      method: 'POST',
      path: '/tickets',
      body: { nclones, procs, min, block },
      reply: TicketGrant,
      timeoutMs: BLOCKING_TIMEOUT_MS,
      ...(signal && { signal }),
    });
  }

  /** Tickets not cloned yet, and those cloned but not yet joined or merged. */
  tickets({ signal }: CallOptions = {}): Promise<TicketList> {
    return this.#ask({
      method: 'GET',
      path: '/tickets',
      reply: TicketList,
      timeoutMs: ANSWER_TIMEOUT_MS,
      ...(signal && { signal }),
    });
  }

  /** The clones of a ticket, with their numbers of processors. */
  async clonesOf(ticket: string, { signal }: CallOptions = {}): Promise<TicketInfo['clones']> {
    const info = await this.#ask({
      method: 'GET',
      path: `/tickets/${encodeURIComponent(ticket)}`,
      reply: TicketInfo,
      timeoutMs: ANSWER_TIMEOUT_MS,
      ...(signal && { signal }),
    });
    return info.clones;
  }

  /** Gives an unused ticket back. */
  async disposeTicket(ticket: string, options: CallOptions = {}): Promise<void> {
    await this.#do({ method: 'DELETE', path: `/tickets/${encodeURIComponent(ticket)}` }, options);
  }

  /** Destroys the clones of a ticket. */
  async merge(ticket: string, options: CallOptions = {}): Promise<void> {
    await this.#do({ method: 'POST', path: `/tickets/${encodeURIComponent(ticket)}/merge` }, options);
  }

  /** Destroys all clones of the cluster, and disposes of its unused tickets. */
  async mergeAll(options: CallOptions = {}): Promise<void> {
    await this.#do({ method: 'POST', path: '/merge' }, options);
  }

  /** Resolves when all clones of a ticket have exited, which are then gone. */
  async join(ticket: string, options: CallOptions = {}): Promise<void> {
    const path = `/tickets/${encodeURIComponent(ticket)}/join`;
    await this.#do({ method: 'POST', path, timeoutMs: BLOCKING_TIMEOUT_MS }, options);
  }

  /** Shuts the cluster down: refused with `tickets-outstanding` while it has clones, unless forced. */
  async shutdown(options: CallOptions & { readonly force?: boolean } = {}): Promise<void> {
    await this.#do({ method: 'DELETE', path: options.force ? '?force=1' : '' }, options);
  }

  /** Shuts the cluster down with all its clones; one that is gone already is no error. */
  async [Symbol.asyncDispose](): Promise<void> {
    try {
      await this.shutdown({ force: true });
    } catch (error) {
      if (!(error instanceof SnowflockError) || error.code !== 'no-such-cluster') throw error;
    }
  }

  #ask<T>(request: ControlRequest<T>): Promise<T> {
    return this.reach.ask({ ...request, path: `/clusters/${this.clusterid}${request.path}` });
  }

  #do(
    request: { readonly method: 'POST' | 'DELETE'; readonly path: string; readonly timeoutMs?: number },
    { signal }: CallOptions,
  ): Promise<undefined> {
    return this.#ask({ timeoutMs: CALL_TIMEOUT_MS, ...request, reply: NoReply, ...(signal && { signal }) });
  }
}
