// sfmd's core: the only writer of the system's state. Commands go in one at a time; their effects go to the hosts.
//
//   route ─▶ command ─▶ apply() ─▶ state' ─▶ stored ─▶ effects ─▶ preparations, cleanups (background) ─▶ commands ...
//                                                        └─▶ waiters look again: tickets, joins, merges
//
// Invariants: nothing is done or answered before it is stored; what could not be stored did not happen; no request waits for a host without a deadline; a caller that goes away leaves nothing behind (a queued
// request is cancelled, a grant or fork whose answer could not be delivered is undone).

import { randomUUID } from 'node:crypto';
import {
  guestIp,
  SnowflockError,
  toSnowflockError,
  type HostReport,
  type HostReportReply,
  type NetworkPolicy,
  type LaunchReport,
  type MasterStarted,
  type RedeemReply,
  type RedeemRequest,
  type SeedReply,
  type SeedRequest,
  type SystemState,
  type TicketGrant,
  type TicketRequest,
  type VmEnded,
  type VmRef,
  type WaitReply,
  type WaitRequest,
} from '@snowflock/protocol';
import {
  apply,
  findResettable,
  findTicket,
  isEnded,
  isJoinable,
  isPrepared,
  knownHosts,
  openCluster,
  outcomes,
  pastOf,
  redemption,
  systemState,
  waitState,
} from '@snowflock/cluster';
import type {
  Chance,
  Cleanup,
  Command,
  Effect,
  HostCapacity,
  Limits,
  SystemData,
  TicketAsk,
  TicketRef,
  WaitState,
} from '@snowflock/cluster';
import type { Caller } from '../http-routes.ts';
import type { Log } from '../log.ts';
import { Checkpoints } from './checkpoints.ts';
import { Cleanups } from './cleanups.ts';
import { effectSubject } from './effect-subject.ts';
import { EventLog, eventOf } from './event-log.ts';
import { withFetched } from './fetched.ts';
import type { HostAddress, Hosts } from './hosts.ts';
import { Migrations } from './migrations.ts';
import { PowerOffs } from './power-offs.ts';
import { PageWays, type PageWaysOptions } from './page-ways.ts';
import { RouterReports } from './routers.ts';
import { startPreparation, type PreparationPorts } from './preparations.ts';
import { TicketRequests } from './ticket-requests.ts';
import type { StateStore } from './store.ts';
import { Undelivered } from './undelivered.ts';
import { abortError, Waiters } from './waiters.ts';

/** Of a system without a configuration of it. */
const NOTHING_OUTSIDE: NetworkPolicy = { whitelist: [], capMbit: null, nameservers: [] };
const BY_UNICAST = { mode: 'unicast', multicastHosts: new Map<string, string>() } as const;
/** How often silence of hosts is looked for. */
const TICK_MS = 1000;
/** Less than sfld waits for a redemption; what is not prepared by then is launched without. A host that is busy takes its time; one that is gone counts as down before. */
const REDEEM_WAIT_MS = 20_000;
/** How long merge, dispose and shutdown wait for hosts that do answer; the rest goes on in the background. */
const DESTROY_WAIT_MS = 12_000;

/** Timers of Node.js overflow above 24 days. */
const WAIT_LOOK_MAX_MS = 24 * 3600 * 1000;

/** Between attempts to store what nobody waits for. */
const STORE_RETRY_MS = 1000;

export interface MasterDaemonOptions {
  readonly store: StateStore;
  /** As configured. */
  readonly capacities: readonly HostCapacity[];
  readonly clusterid: number;
  /** Absent: the default ones. */
  readonly limits?: Limits;
  /** What clusters may reach; absent: nothing outside. */
  readonly network?: NetworkPolicy;
  readonly hosts: Hosts;
  /** How pages reach the hosts of a fork; absent: by unicast. */
  readonly pageWays?: Pick<PageWaysOptions, 'mode' | 'multicastHosts'>;
  /** Clones on other hosts than their parent fetch everything in the background; absent: only what they touch. */
  readonly detach?: boolean;
  /** What some clones needed is fetched ahead by others; absent: it is. */
  readonly push?: boolean;
  /** Over a narrow link, pages that nobody waits for yet are compressed; absent: they are. */
  readonly compress?: boolean;
  readonly log: Log;
  readonly random: () => number;
  /** Monotonic. */
  readonly nowMs: () => number;
  /** What the clock of the machine says. */
  readonly unixMs: () => number;
}

export class MasterDaemon implements Disposable {
  readonly #options: MasterDaemonOptions;
  #system: SystemData;
  readonly events: EventLog;
  readonly checkpoints: Checkpoints;
  readonly migrations: Migrations;
  readonly routers: RouterReports;
  readonly pageWays: PageWays;
  readonly #undelivered = new Undelivered();
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
    this.routers = new RouterReports({
      policy: options.network ?? NOTHING_OUTSIDE,
      system: () => this.system,
      log: options.log,
    });
    this.#system = options.store.committed();
    this.events = new EventLog(this.#system.starts + 1);
    this.#chance = { random: options.random, newTicket: randomUUID };
    this.#cleanups = new Cleanups({
      destroy: (cleanup) =>
        this.system.hosts[cleanup.host]?.up
          ? options.hosts.destroy(this.#address(cleanup.host), cleanup, this.#closing.signal)
          : null,
      isOpen: (cleanup) =>
        this.system.cleanups.some(
          (open) =>
            open.host === cleanup.host &&
            open.clusterid === cleanup.clusterid &&
            open.ticket === cleanup.ticket &&
            open.vmid === cleanup.vmid,
        ),
      onDone: (cleanup) => void this.#apply({ type: 'cleaned', ...cleanup }),
      onOverdue: () => this.#waiters.check(),
      log: options.log,
      closing: this.#closing.signal,
    });
    this.#requests = new TicketRequests({
      apply: (command) => void this.#apply(command),
      undo: (command) => this.#attempt(command),
    });
    this.pageWays = new PageWays({
      ...(options.pageWays ?? BY_UNICAST),
      hosts: options.hosts,
      addressOf: (host) => this.#address(host),
      log: options.log,
      closing: this.#closing.signal,
    });
    this.#preparing = {
      hosts: options.hosts,
      addressOf: (host) => this.#address(host),
      ways: this.pageWays,
      detach: options.detach ?? false,
      push: options.push ?? true,
      compress: options.compress ?? true,
      apply: (command) => this.#applySometime(command),
      log: options.log,
      closing: this.#closing.signal,
    };
    const ports = {
      system: () => this.system,
      hosts: options.hosts,
      addressOf: (host: string) => this.#address(host),
      apply: (command: Command) => this.#apply(command),
      applySometime: (command: Command) => this.#applySometime(command),
      closing: this.#closing.signal,
    };
    this.checkpoints = new Checkpoints(ports);
    this.migrations = new Migrations({ ...ports, compress: this.#preparing.compress });
    const { capacities: hosts, clusterid, limits } = options;
    this.#apply({
      type: 'restarted',
      hosts,
      clusterid,
      ...(limits ? { limits } : {}),
      nowMs: options.nowMs(),
      unixMs: options.unixMs(),
    });
    for (const cluster of Object.values(this.#system.clusters)) this.#expectPowerOff(cluster.clusterid);
    this.#ticker = setInterval(() => this.#attempt({ type: 'tick', nowMs: options.nowMs() }), TICK_MS);
  }

  get system(): SystemData {
    return this.#system;
  }

  /** `fetched`: with what clones have fetched, as far as their hosts answer. */
  async state({ fetched }: { readonly fetched: boolean }): Promise<SystemState> {
    const state = systemState(this.#system);
    if (!fetched) return state;
    return withFetched(state, async (host) =>
      this.#options.hosts.clones(this.#address(host), this.#closing.signal),
    );
  }

  [Symbol.dispose](): void {
    clearInterval(this.#ticker);
    this.#undelivered[Symbol.dispose]();
    this.events[Symbol.dispose]();
    this.#powerOffs[Symbol.dispose]();
    const stopping = new SnowflockError('unavailable', 'sfmd is stopping; ask again when it runs');
    this.#closing.abort(stopping);
    this.#requests.stop(stopping);
    this.#options.hosts[Symbol.dispose]();
  }

  reportHost(host: string, report: HostReport): Pick<HostReportReply, 'hosts'> {
    this.#apply({ type: 'host-reported', host, report, nowMs: this.#options.nowMs() });
    this.pageWays.noteUp(Object.values(this.system.hosts).flatMap(({ host, up }) => (up ? [host] : [])));
    return { hosts: knownHosts(this.system) };
  }

  async seed(request: SeedRequest, signal: AbortSignal): Promise<SeedReply> {
    const command: Command =
      'checkpoint' in request
        ? { type: 'seed-checkpoint', name: request.checkpoint, ticket: randomUUID() }
        : { type: 'seed', shape: request };
    const start = this.#apply(command).find((effect) => effect.type === 'start-master');
    if (!start) throw new Error('seeding yielded no master VM');
    const { clusterid, host } = start;
    try {
      const started = await this.#startMaster(start);
      if (signal.aborted) throw abortError(signal);
      if (this.system.clusters[clusterid]) this.#apply({ type: 'master-started', clusterid, ...started });
    } catch (thrown) {
      const { code, message } = toSnowflockError(thrown);
      // Its host may have told of its end meanwhile.
      if (this.system.clusters[clusterid]?.closing === false)
        this.#applySometime({ type: 'master-failed', clusterid, reason: message });
      throw new SnowflockError(code, `host ${host} could not start the master VM: ${message}`, {
        cause: thrown,
      });
    }
    return { clusterid, vmid: 0, host, ip: guestIp(0) };
  }

  /** Of a checkpoint: the host that holds it serves it while the other gets ready. */
  async #startMaster({
    clusterid,
    host,
    shape,
    checkpoint,
    diskBytes,
  }: Extract<Effect, { type: 'start-master' }>): Promise<MasterStarted> {
    const { hosts } = this.#options;
    const { signal } = this.#closing;
    if (!checkpoint) return hosts.startMaster(this.#address(host), { clusterid, shape, checkpoint }, signal);
    const { name, id, ticket } = checkpoint;
    const source = this.#address(checkpoint.host);
    const from = { name, ticket, diskBytes, source };
    const [started] = await Promise.all([
      hosts.startMaster(this.#address(host), { clusterid, shape, checkpoint: from }, signal),
      hosts.serveCheckpoint(source, { name, id, clusterid, ticket, target: host }, signal),
    ]);
    return started;
  }

  /** Answers when the clone runs again, at its fork point. `by`: a VM that asks for it. */
  async resetVm({ clusterid, vmid }: VmRef, by?: number): Promise<void> {
    const vm = findResettable(openCluster(this.system, clusterid), vmid, by);
    await this.#options.hosts.resetVm(this.#address(vm.host), { clusterid, vmid }, this.#closing.signal);
  }

  async shutdown(options: { clusterid: number; force: boolean; byGuest: boolean }): Promise<void> {
    this.#apply({ type: 'shutdown', ...options });
    if (!options.byGuest) return this.#destroyed(options.clusterid, null);
    this.#expectPowerOff(options.clusterid);
  }

  /** Of a guest that has shut its cluster down, also before sfmd was started. */
  #expectPowerOff(clusterid: number): void {
    const cluster = this.system.clusters[clusterid];
    if (cluster?.closing !== true || !cluster.vms[0] || isEnded(cluster.vms[0])) return;
    this.#powerOffs.expect(() => {
      if (this.system.clusters[clusterid])
        this.#attempt({ type: 'shutdown', clusterid, force: true, byGuest: false });
    });
  }

  vmEnded(where: { clusterid: number; vmid: number }, ended: VmEnded): void {
    this.#apply({ type: 'vm-ended', ...where, ended });
  }

  /** Answers when granted; at once unless the request blocks. */
  requestTicket(
    asking: { clusterid: number; by?: number | undefined },
    request: TicketRequest,
    caller: Caller,
  ): Promise<TicketGrant> {
    return this.#requests.ask({ ...asking, request, caller });
  }

  /** unused ─▶ outstanding, once what was under way on the hosts is ready or has failed. */
  async redeem(ref: TicketAsk, { redemption: id }: RedeemRequest, caller: Caller): Promise<RedeemReply> {
    const ticket = findTicket(openCluster(this.system, ref.clusterid), ref.ticket, ref.by);
    if (ticket.status === 'unused') {
      const ready = await this.#waiters.until(() => isPrepared(this.system, ref), {
        timeoutMs: REDEEM_WAIT_MS,
        signal: this.#either(caller.signal),
      });
      if (!ready) this.#giveUpPreparing(ref);
    }
    try {
      this.#apply({ type: 'redeem', ...ref, ...(id === undefined ? {} : { redemption: id }) });
    } catch (error) {
      if (error instanceof SnowflockError && error.code === 'fork-failed')
        this.#attempt({ type: 'dispose', ...ref });
      throw error;
    }
    this.#undelivered.expect({
      id: id ?? null,
      caller,
      undo: () => this.#attempt({ type: 'merge', ...ref }),
    });
    return redemption(this.system, ref);
  }

  launched(ref: TicketRef, report: LaunchReport): void {
    this.#apply({ type: 'launched', ...ref, report });
  }

  async merge(ref: TicketAsk): Promise<void> {
    await this.#ticketsDestroyed(ref.clusterid, this.#apply({ type: 'merge', ...ref }));
  }

  /** Of one VM, or of a cluster. */
  async mergeAll(asking: { clusterid: number; by?: number | undefined }): Promise<void> {
    await this.#ticketsDestroyed(asking.clusterid, this.#apply({ type: 'merge-all', ...asking }));
  }

  /** Answers when every clone has ended; then it is a merge. */
  async join(ref: TicketAsk, signal: AbortSignal): Promise<void> {
    const cluster = openCluster(this.system, ref.clusterid);
    if (pastOf(cluster, ref.ticket) === 'merged') return;
    if (findTicket(cluster, ref.ticket, ref.by).status === 'unused')
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

  /** Answers how every clone ended, once all have or there is enough of them; the ticket stays as it is. */
  async wait(ref: TicketAsk, request: WaitRequest, signal: AbortSignal): Promise<WaitReply> {
    findTicket(openCluster(this.system, ref.clusterid), ref.ticket, ref.by);
    const { nowMs } = this.#options;
    const sinceMs = nowMs();
    const look = (): WaitState => waitState(this.system, ref, { ...request, sinceMs, nowMs: nowMs() });
    const isRunning = (): boolean =>
      this.system.clusters[ref.clusterid]?.tickets[ref.ticket] !== undefined && look().kind === 'running';
    for (;;) {
      const state = look();
      if (state.kind === 'over') return { clones: outcomes(this.system, ref) };
      if (state.kind === 'enough') this.#apply({ type: 'end-clones', ...ref, reason: state.reason });
      else
        await this.#waiters.until(() => !isRunning(), {
          timeoutMs: state.lookAgainMs === null ? null : Math.min(state.lookAgainMs, WAIT_LOOK_MAX_MS),
          signal: this.#either(signal),
        });
    }
  }

  async dispose(ref: TicketAsk): Promise<void> {
    await this.#ticketsDestroyed(ref.clusterid, this.#apply({ type: 'dispose', ...ref }));
  }

  #apply(command: Command): Effect[] {
    this.#system.nowMs = this.#options.nowMs();
    const effects = apply(this.#system, command, this.#chance);
    try {
      this.#options.store.commit(this.#system);
    } catch (error) {
      this.#system = this.#options.store.committed();
      throw error;
    }
    for (const effect of effects) this.#carryOut(effect);
    this.#waiters.check();
    return effects;
  }

  /** What may come too late, or comes again. */
  #attempt(command: Command): void {
    try {
      this.#apply(command);
    } catch (error) {
      const { code, message: reason } = toSnowflockError(error);
      const level = code === 'unavailable' || code === 'internal' ? 'error' : 'info';
      this.#options.log[level]({ command: command.type, reason }, 'not done');
    }
  }

  /** What nobody waits for, and must not be forgotten: again until it could be stored. */
  #applySometime(command: Command): void {
    if (this.#closing.signal.aborted) return;
    try {
      this.#apply(command);
    } catch (error) {
      const { code, message: reason } = toSnowflockError(error);
      this.#options.log.error({ command: command.type, reason }, 'not done');
      if (code === 'unavailable') setTimeout(() => this.#applySometime(command), STORE_RETRY_MS).unref();
    }
  }

  #carryOut(effect: Effect): void {
    const { type, ...fields } = effect;
    this.#options.log.info({ ...fields, ...effectSubject(this.system, effect) }, type);
    const event = eventOf(effect);
    if (event) this.events.append(event);
    switch (effect.type) {
      case 'start-master': // seed() itself waits for it
      case 'write-checkpoint': // as who asked for it does
      case 'checkpoint-ready':
      case 'checkpoint-deleted':
      case 'vm-ended':
      case 'host-down':
      case 'cluster-started':
      case 'cluster-ended':
      case 'fork-begun':
      case 'clone-running':
      case 'ticket-ended':
      case 'vm-migrated':
        return;
      case 'migrate':
        return this.migrations.start(effect);
      case 'checkpoint-failed':
        return this.checkpoints.failed(effect);
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
          vmid: effect.vmid,
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
        `the host of VM ${ref.clusterid}:${ticket.owner} did not get ready for ticket ${ref.ticket} in ${REDEEM_WAIT_MS} ms; try again`,
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

  /** Until every host that answers has cleaned up after the tickets that a command ended: a ticket, and those of its clones. */
  async #ticketsDestroyed(clusterid: number, effects: readonly Effect[]): Promise<void> {
    const ended = effects.filter((effect) => effect.type === 'ticket-ended');
    await Promise.all(ended.map(({ ticket }) => this.#destroyed(clusterid, ticket)));
  }

  /** Until every host that answers has cleaned up. */
  async #destroyed(clusterid: number, ticket: string | null): Promise<void> {
    await this.#waiters.until(
      () => this.#openCleanups(clusterid, ticket).every((each) => this.#cleanups.isOverdue(each)),
      { timeoutMs: DESTROY_WAIT_MS, signal: this.#closing.signal },
    );
  }

  #openCleanups(clusterid: number, ticket: string | null): Cleanup[] {
    return this.system.cleanups.filter(
      (open) => open.clusterid === clusterid && open.ticket === ticket && open.vmid === null,
    );
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
