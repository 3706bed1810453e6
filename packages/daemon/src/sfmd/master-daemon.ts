// sfmd's core: the only writer of the system's state. Commands go in one at a time; their effects go to the hosts.
//
//   route ─▶ command ─▶ apply() ─▶ state' + effects ─▶ preparations, cleanups (background) ─▶ commands ...
//                                      └─▶ waiters look again: tickets, joins, merges
//
// Invariants: no request waits for a host without a deadline; a caller that goes away leaves nothing behind (a queued
// request is cancelled, a grant or fork whose answer could not be delivered is undone).

import { randomUUID } from 'node:crypto';
import {
  guestIp,
  SnowflockError,
  toSnowflockError,
  type HostReport,
  type HostReportReply,
  type LaunchReport,
  type MasterStarted,
  type RedeemReply,
  type SeedReply,
  type TicketGrant,
  type TicketRequest,
  type VmEnded,
  type VmShape,
} from '@snowflock/protocol';
import {
  apply,
  findTicket,
  isJoinable,
  isPrepared,
  knownHosts,
  openCluster,
  pastOf,
  redemption,
} from '@snowflock/cluster';
import type { Chance, Cleanup, Command, Effect, SystemData, TicketRef } from '@snowflock/cluster';
import type { Log } from '../log.ts';
import { Cleanups } from './cleanups.ts';
import type { HostAddress, Hosts } from './hosts.ts';
import { PowerOffs } from './power-offs.ts';
import { startPreparation, type PreparationPorts } from './preparations.ts';
import { TicketRequests } from './ticket-requests.ts';
import { abortError, undoUnlessDelivered, Waiters } from './waiters.ts';

/** How often silence of hosts is looked for. */
const TICK_MS = 1000;
/** Less than sfld waits for a redemption; what is not prepared by then is launched without. */
const REDEEM_WAIT_MS = 8000;
/** How long merge, dispose and shutdown wait for hosts that do answer; the rest goes on in the background. */
const DESTROY_WAIT_MS = 12_000;

export interface MasterDaemonOptions {
  readonly system: SystemData;
  readonly hosts: Hosts;
  readonly log: Log;
  readonly random: () => number;
  /** Monotonic. */
  readonly nowMs: () => number;
}

export class MasterDaemon implements Disposable {
  readonly #options: MasterDaemonOptions;
  readonly #chance: Chance;
  readonly #waiters = new Waiters();
  readonly #requests: TicketRequests;
  readonly #cleanups: Cleanups;
  readonly #preparing: PreparationPorts;
  readonly #closing = new AbortController();
  readonly #ticker: NodeJS.Timeout;
  readonly #powerOffs = new PowerOffs();

  constructor(options: MasterDaemonOptions) {
    this.#options = options;
    this.#chance = { random: options.random, newTicket: randomUUID };
    this.#cleanups = new Cleanups({
      destroy: (cleanup) =>
        this.system.hosts[cleanup.host]?.up
          ? options.hosts.destroy(this.#address(cleanup.host), cleanup, this.#closing.signal)
          : null,
      isOpen: (cleanup) =>
        this.#openCleanups(cleanup.clusterid, cleanup.ticket).some((open) => open.host === cleanup.host),
      onDone: (cleanup) => void this.#apply({ type: 'cleaned', ...cleanup }),
      onOverdue: () => this.#waiters.check(),
      log: options.log,
      closing: this.#closing.signal,
    });
    this.#requests = new TicketRequests({
      apply: (command) => void this.#apply(command),
      undo: (command) => this.#attempt(command),
    });
    this.#preparing = {
      hosts: options.hosts,
      addressOf: (host) => this.#address(host),
      apply: (command) => void this.#apply(command),
      log: options.log,
      closing: this.#closing.signal,
    };
    this.#ticker = setInterval(() => this.#apply({ type: 'tick', nowMs: options.nowMs() }), TICK_MS);
  }

  get system(): SystemData {
    return this.#options.system;
  }

  [Symbol.dispose](): void {
    clearInterval(this.#ticker);
    this.#powerOffs[Symbol.dispose]();
    const stopping = new SnowflockError('unavailable', 'sfmd is stopping; ask again when it runs');
    this.#closing.abort(stopping);
    this.#requests.stop(stopping);
    this.#options.hosts[Symbol.dispose]();
  }

  reportHost(host: string, report: HostReport): HostReportReply {
    this.#apply({ type: 'host-reported', host, report, nowMs: this.#options.nowMs() });
    return { hosts: knownHosts(this.system) };
  }

  async seed(shape: VmShape, signal: AbortSignal): Promise<SeedReply> {
    const start = this.#apply({ type: 'seed', shape }).find((effect) => effect.type === 'start-master');
    if (!start) throw new Error('seeding yielded no master VM');
    const { clusterid, host } = start;
    let started: MasterStarted;
    try {
      started = await this.#options.hosts.startMaster(
        this.#address(host),
        { clusterid, shape },
        this.#closing.signal,
      );
      if (signal.aborted) throw abortError(signal);
    } catch (thrown) {
      const { code, message } = toSnowflockError(thrown);
      // Its host may have told of its end meanwhile.
      if (this.system.clusters[clusterid]?.closing === false)
        this.#apply({ type: 'master-failed', clusterid, reason: message });
      throw new SnowflockError(code, `host ${host} could not start the master VM: ${message}`, {
        cause: thrown,
      });
    }
    if (this.system.clusters[clusterid]) this.#apply({ type: 'master-started', clusterid, ...started });
    return { clusterid, vmid: 0, host, ip: guestIp(0) };
  }

  async shutdown(options: { clusterid: number; force: boolean; byGuest: boolean }): Promise<void> {
    this.#apply({ type: 'shutdown', ...options });
    if (!options.byGuest) return this.#destroyed(options.clusterid, null);
    this.#powerOffs.expect(() => {
      if (this.system.clusters[options.clusterid])
        this.#apply({ type: 'shutdown', ...options, force: true, byGuest: false });
    });
  }

  vmEnded(where: { clusterid: number; vmid: number }, ended: VmEnded): void {
    this.#apply({ type: 'vm-ended', ...where, ended });
  }

  /** Answers when granted; at once unless the request blocks. `signal`: the caller is gone. */
  requestTicket(clusterid: number, request: TicketRequest, signal: AbortSignal): Promise<TicketGrant> {
    return this.#requests.ask({ clusterid, request, signal });
  }

  /** unused ─▶ outstanding, once what was under way on the hosts is ready or has failed. */
  async redeem(ref: TicketRef, signal: AbortSignal): Promise<RedeemReply> {
    const ticket = findTicket(openCluster(this.system, ref.clusterid), ref.ticket);
    if (ticket.status === 'unused') {
      const ready = await this.#waiters.until(() => isPrepared(this.system, ref), {
        timeoutMs: REDEEM_WAIT_MS,
        signal: this.#either(signal),
      });
      if (!ready) this.#giveUpPreparing(ref);
    }
    try {
      this.#apply({ type: 'redeem', ...ref });
    } catch (error) {
      if (error instanceof SnowflockError && error.code === 'fork-failed')
        this.#attempt({ type: 'dispose', ...ref });
      throw error;
    }
    undoUnlessDelivered(signal, () => this.#attempt({ type: 'merge', ...ref }));
    return redemption(this.system, ref);
  }

  launched(ref: TicketRef, report: LaunchReport): void {
    this.#apply({ type: 'launched', ...ref, report });
  }

  async merge(ref: TicketRef): Promise<void> {
    this.#apply({ type: 'merge', ...ref });
    await this.#destroyed(ref.clusterid, ref.ticket);
  }

  async mergeAll(clusterid: number): Promise<void> {
    const tickets = Object.keys(openCluster(this.system, clusterid).tickets);
    this.#apply({ type: 'merge-all', clusterid });
    await Promise.all(tickets.map((ticket) => this.#destroyed(clusterid, ticket)));
  }

  /** Answers when every clone has ended; then it is a merge. */
  async join(ref: TicketRef, signal: AbortSignal): Promise<void> {
    const cluster = openCluster(this.system, ref.clusterid);
    if (pastOf(cluster, ref.ticket) === 'merged') return;
    if (findTicket(cluster, ref.ticket).status === 'unused')
      throw new SnowflockError(
        'ticket-unused',
        `ticket ${ref.ticket} was not used yet, so there is nothing to join`,
      );
    await this.#waiters.until(() => isJoinable(this.system, ref), {
      timeoutMs: null,
      signal: this.#either(signal),
    });
    // Somebody may have merged it, or ended the cluster, while this waited.
    if (this.system.clusters[ref.clusterid]?.tickets[ref.ticket]) await this.merge(ref);
  }

  async dispose(ref: TicketRef): Promise<void> {
    this.#apply({ type: 'dispose', ...ref });
    await this.#destroyed(ref.clusterid, ref.ticket);
  }

  #apply(command: Command): Effect[] {
    const effects = apply(this.system, command, this.#chance);
    for (const effect of effects) this.#carryOut(effect);
    this.#waiters.check();
    return effects;
  }

  /** For undoing, where the thing to undo may be gone already. */
  #attempt(command: Command): void {
    try {
      this.#apply(command);
    } catch (error) {
      this.#options.log.info(
        { command: command.type, reason: toSnowflockError(error).message },
        'nothing to undo',
      );
    }
  }

  #carryOut(effect: Effect): void {
    const { type, ...fields } = effect;
    this.#options.log.info(fields, type);
    switch (effect.type) {
      case 'start-master': // seed() itself waits for it
      case 'vm-ended':
      case 'host-down':
        return;
      case 'granted':
        return this.#requests.granted(effect.requestId, effect.grant);
      case 'refused':
        return this.#requests.refused(effect.requestId, new SnowflockError(effect.code, effect.message));
      case 'prepare-source':
      case 'prepare-clones':
        return startPreparation(effect, this.#preparing);
      case 'clean-up':
        return this.#cleanups.start({
          host: effect.host,
          clusterid: effect.clusterid,
          ticket: effect.ticket,
        });
      case 'host-up':
        return this.#cleanups.hostIsBack(effect.host);
    }
  }

  /** What has not answered counts as failed: a fork with fewer clones is better than none. */
  #giveUpPreparing(ref: TicketRef): void {
    const ticket = this.system.clusters[ref.clusterid]?.tickets[ref.ticket];
    if (ticket?.sourcePreparing)
      throw new SnowflockError(
        'timeout',
        `the master VM's host did not get ready for ticket ${ref.ticket} in ${REDEEM_WAIT_MS} ms; try again`,
      );
    for (const host of [...(ticket?.preparing ?? [])])
      this.#apply({
        type: 'prepared',
        ...ref,
        host,
        part: 'clones',
        error: `no answer in ${REDEEM_WAIT_MS} ms`,
      });
  }

  /** Until every host that answers has cleaned up. */
  async #destroyed(clusterid: number, ticket: string | null): Promise<void> {
    await this.#waiters.until(
      () => this.#openCleanups(clusterid, ticket).every((each) => this.#cleanups.isOverdue(each)),
      { timeoutMs: DESTROY_WAIT_MS, signal: this.#closing.signal },
    );
  }

  #openCleanups(clusterid: number, ticket: string | null): Cleanup[] {
    return this.system.cleanups.filter((open) => open.clusterid === clusterid && open.ticket === ticket);
  }

  /** The caller going away, or sfmd stopping. */
  #either(signal: AbortSignal): AbortSignal {
    return AbortSignal.any([signal, this.#closing.signal]);
  }

  #address(host: string): HostAddress {
    const known = this.system.hosts[host];
    return { host, address: known?.address ?? host, sfldPort: known?.sfldPort ?? 0 };
  }
}
