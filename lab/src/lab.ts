// A lab: hosts on one machine, each a set of namespaces with its own address, hostname, state directory and sfld.
//
//   (nothing) --up--> starting --all hosts up--> up --down--> (nothing)
//                        └── any failure, abort ──▶ rolled back to (nothing)
//
// Invariants: the lab's directory is made first and removed last, so it is the lock; lab.json lists every process
// that was started, as soon as it was; nothing is made outside the directory, the namespaces `sf-NAME-*` and the
// processes in them. So `downLab` can remove a lab whose maker was killed at any point.

import { setTimeout as sleep } from 'node:timers/promises';
import { runBatch, runCommand, type CommandOptions, type CommandResult } from '@snowflock/network';
import { ControlClient, SnowflockError, SystemState } from '@snowflock/protocol';
import { makeCertificates } from './certificates.ts';
import { claimDir, halfDead, wholeness } from './claim.ts';
import { writeHostFiles, type LabNetworkMode } from './config.ts';
import { downLab, type DownResult } from './down.ts';
import { findLeftovers, type Leftover } from './leftovers.ts';
import {
  checkLabName,
  DEFAULT_LAB_NAME,
  hostAddress,
  hostDir,
  hostName,
  hostNetns,
  hostSocket,
  LAB_HOSTS_MAX,
  labDir,
} from './names.ts';
import { daemonLog, logTail, onHostArgv, sendSignal, startDaemon, startHolder } from './processes.ts';
import {
  isAlive,
  readRecord,
  writeRecord,
  type DaemonName,
  type HostRecord,
  type LabRecord,
} from './record.ts';
import { setCable, shapeCable } from './links.ts';
import { topologyCommands, type LinkShape } from './topology.ts';

export const LAB_DEFAULT_CPUS = 4;
export const LAB_DEFAULT_RAM_BYTES = 4 * 2 ** 30;
/** From the daemons being ready to sfmd listing every host as up. */
const HOSTS_UP_TIMEOUT_MS = 30_000;
const STATE_TIMEOUT_MS = 3000;
const POLL_MS = 50;

export const LAB_STEPS = ['network', 'certificates', 'sfmd', 'sfld', 'hosts'] as const;
export type LabStep = (typeof LAB_STEPS)[number];

export interface LabProgress {
  readonly step: LabStep;
  readonly state: 'start' | 'done' | 'failed';
  readonly detail: string;
}

export interface LabUpOptions {
  readonly name?: string | undefined;
  readonly hosts: number;
  /** Of each host; what sfmd may give to VMs. */
  readonly cpus?: number | undefined;
  readonly ramBytes?: number | undefined;
  readonly networkMode?: LabNetworkMode | undefined;
  /** Lines of sfmd's configuration, in place of the defaults. */
  readonly sfmdOptions?: readonly string[] | undefined;
  readonly onProgress?: ((progress: LabProgress) => void) | undefined;
  /** Other entry points for the daemons; for tests. */
  readonly mains?: Partial<Record<DaemonName, string>> | undefined;
  readonly signal?: AbortSignal | undefined;
}

export interface LabHost {
  readonly k: number;
  readonly name: string;
  readonly address: string;
  readonly netns: string;
  readonly dir: string;
  /** sfld's unix socket. */
  readonly socketPath: string;
}

export class Lab implements AsyncDisposable {
  readonly name: string;
  readonly dir: string;
  readonly hosts: readonly LabHost[];
  readonly cpus: number;
  readonly ramBytes: number;
  #record: LabRecord;
  readonly #mains: Partial<Record<DaemonName, string>>;
  readonly #clients = new Map<number, ControlClient>();

  private constructor(record: LabRecord, mains: Partial<Record<DaemonName, string>>) {
    this.name = record.name;
    this.dir = labDir(record.name);
    this.cpus = record.cpus;
    this.ramBytes = record.ramBytes;
    this.#record = record;
    this.#mains = mains;
    this.hosts = Array.from({ length: record.hostCount }, (_, index) => labHost(record.name, index + 1));
  }

  /** Makes a lab and waits until sfmd has every host. On failure or abort nothing of it is left. */
  static async up(options: LabUpOptions): Promise<Lab> {
    const { hosts, signal } = options;
    const name = checkLabName(options.name ?? DEFAULT_LAB_NAME);
    if (!Number.isInteger(hosts) || hosts < 1 || hosts > LAB_HOSTS_MAX)
      throw new SnowflockError('bad-request', `a lab has 1 to ${LAB_HOSTS_MAX} hosts, not ${hosts}`);
    const cpus = options.cpus ?? LAB_DEFAULT_CPUS;
    if (!Number.isInteger(cpus) || cpus < 1)
      throw new SnowflockError('bad-request', `a lab host has 1 or more CPUs, not ${cpus}`);
    const ramBytes = options.ramBytes ?? LAB_DEFAULT_RAM_BYTES;
    for (let k = 1; k <= hosts; k++) hostSocket(name, k);
    if (process.getuid?.() !== 0)
      throw new SnowflockError('unauthorized', 'a lab needs root (network namespaces)');
    await claimDir(name);
    const record: LabRecord = {
      version: 1,
      name,
      phase: 'starting',
      cpus,
      ramBytes,
      hostCount: hosts,
      hosts: [],
    };
    const lab = new Lab(record, options.mains ?? {});
    try {
      await lab.#bringUp(options);
      signal?.throwIfAborted();
      return lab;
    } catch (error) {
      lab.#closeClients();
      await downLab(name, { netInodes: lab.#netInodes() });
      if (signal?.aborted)
        throw new SnowflockError('interrupted', `lab '${name}': interrupted; nothing of it is left`, {
          cause: error,
        });
      throw error;
    }
  }

  /**
   * The lab that another process brought up; undefined when there is none. Throws when it is not whole, unless the caller
   * is about to start what is missing.
   */
  static async find(
    name: string = DEFAULT_LAB_NAME,
    { broken = false }: { readonly broken?: boolean } = {},
  ): Promise<Lab | undefined> {
    const found = await findLeftovers(checkLabName(name));
    if (found.length === 0) return undefined;
    const record = await readRecord(name);
    const problem = record ? wholeness(record) : 'its record is missing';
    if (!record || (problem !== undefined && !broken)) throw halfDead(name, problem ?? '');
    return new Lab(record, {});
  }

  /** The control API of a host's sfld; owned by the lab. */
  client(k: number): ControlClient {
    const host = this.#host(k);
    const client = this.#clients.get(k) ?? new ControlClient({ socketPath: host.socketPath });
    this.#clients.set(k, client);
    return client;
  }

  /** What sfmd knows, asked through host 1. */
  state(options: { readonly signal?: AbortSignal } = {}): Promise<SystemState> {
    const request = {
      method: 'GET',
      path: '/v1/master/state',
      reply: SystemState,
      timeoutMs: STATE_TIMEOUT_MS,
    } as const;
    return this.client(1).request({ ...request, ...options });
  }

  /** Runs a command on a host: its network, hostname and mounts. */
  async exec(k: number, argv: readonly string[], options: CommandOptions = {}): Promise<CommandResult> {
    return runCommand(onHostArgv(this.#hostRecord(k).holderPid, argv), options);
  }

  /** Pulls the host's cable. */
  async cutHost(k: number): Promise<void> {
    return setCable(this.name, this.#host(k).k, 'down');
  }

  async healHost(k: number): Promise<void> {
    return setCable(this.name, this.#host(k).k, 'up');
  }

  /** Makes a host's link slow or lossy, in both directions; `{}` makes it whole again. */
  async shapeLink(k: number, shape: LinkShape): Promise<void> {
    return shapeCable(this.name, this.#host(k).k, shape);
  }

  /** pid of a daemon, undefined when it is not alive. */
  daemonPid(k: number, daemon: DaemonName): number | undefined {
    const host = this.#hostRecord(k);
    const pid = host.daemons[daemon];
    return isAlive(host, pid) ? pid : undefined;
  }

  /** Sends a signal to a daemon; SIGKILL for crash tests. */
  signalDaemon(k: number, daemon: DaemonName, signal: NodeJS.Signals): void {
    const pid = this.daemonPid(k, daemon);
    if (pid !== undefined) sendSignal(pid, signal);
  }

  /** Starts a daemon (again) and waits until it is ready. */
  async startDaemon(
    k: number,
    daemon: DaemonName,
    options: { readonly signal?: AbortSignal | undefined } = {},
  ): Promise<number> {
    const host = this.#hostRecord(k);
    if (this.daemonPid(k, daemon) !== undefined)
      throw new SnowflockError('bad-request', `${daemon} of ${hostName(k)} is running already`);
    const main = this.#mains[daemon];
    const pid = await startDaemon({ name: this.name, host, daemon, main, signal: options.signal });
    const now = this.#hostRecord(k);
    await this.#remember({ ...now, daemons: { ...now.daemons, [daemon]: pid } });
    return pid;
  }

  logPath(k: number, daemon: DaemonName): string {
    return daemonLog({ name: this.name, k, daemon });
  }

  /** What there is of this lab on the machine; nothing after `down`. */
  leftovers(): Promise<Leftover[]> {
    return findLeftovers(this.name, { netInodes: this.#netInodes() });
  }

  async down(options: { readonly onProgress?: (line: string) => void } = {}): Promise<DownResult> {
    this.#closeClients();
    return downLab(this.name, { ...options, netInodes: this.#netInodes() });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.down();
  }

  // ---- bringing up ------------------------------------------------------------------------------------------------

  async #bringUp(options: LabUpOptions): Promise<void> {
    const { name } = this;
    const { onProgress, signal } = options;
    const count = this.hosts.length;
    const step = async (which: LabStep, detail: string, work: () => Promise<unknown>): Promise<void> => {
      signal?.throwIfAborted();
      onProgress?.({ step: which, state: 'start', detail });
      try {
        await work();
      } catch (error) {
        onProgress?.({ step: which, state: 'failed', detail });
        throw error;
      }
      onProgress?.({ step: which, state: 'done', detail });
    };
    await writeRecord(this.#record);
    await step('network', `${count} hosts on a switch`, async () => {
      const { cpus, ramBytes } = this;
      const { networkMode, sfmdOptions } = options;
      await writeHostFiles({ name, hosts: count, cpus, ramBytes, networkMode, sfmdOptions });
      for (const { netns, commands } of topologyCommands({ name, hosts: count }))
        await runBatch('ip', commands, { netns, signal });
      for (const { k } of this.hosts) await this.#remember(await startHolder({ name, k }));
    });
    await step('certificates', `an authority and ${count} certificates`, () =>
      makeCertificates({ name, hosts: count, signal }),
    );
    await step('sfmd', `sfmd on ${hostName(1)}`, () => this.startDaemon(1, 'sfmd', { signal }));
    await step('sfld', `sfld on ${count} hosts`, () => this.#startAll(signal));
    await step('hosts', `sfmd has every host`, () => this.#waitForHosts(signal));
    this.#record = { ...this.#record, phase: 'up' };
    await writeRecord(this.#record);
  }

  /** All at once; the first failure stops the waiting for the others. */
  async #startAll(signal: AbortSignal | undefined): Promise<void> {
    const failed = new AbortController();
    const either = signal ? AbortSignal.any([signal, failed.signal]) : failed.signal;
    let reason: unknown;
    const starts = this.hosts.map(async ({ k }) => {
      try {
        await this.startDaemon(k, 'sfld', { signal: either });
      } catch (error) {
        reason ??= error;
        failed.abort();
      }
    });
    await Promise.all(starts);
    if (reason !== undefined) throw reason instanceof Error ? reason : new Error('sfld did not start');
  }

  async #waitForHosts(signal: AbortSignal | undefined): Promise<void> {
    const deadline = performance.now() + HOSTS_UP_TIMEOUT_MS;
    let last = 'no answer yet';
    while (performance.now() < deadline) {
      signal?.throwIfAborted();
      for (const { k } of this.hosts) await this.#assertDaemons(k);
      try {
        const up = new Set((await this.state()).hosts.filter((host) => host.up).map(({ host }) => host));
        const down = this.hosts.filter(({ name }) => !up.has(name)).map(({ name }) => name);
        if (down.length === 0) return;
        last = `${down.join(', ')} not up`;
      } catch (error) {
        last = error instanceof Error ? error.message : String(error);
      }
      await sleep(POLL_MS);
    }
    const tail = await logTail(this.logPath(1, 'sfmd'));
    throw new SnowflockError(
      'timeout',
      `lab '${this.name}': after ${HOSTS_UP_TIMEOUT_MS} ms: ${last}; ${tail}`,
    );
  }

  async #assertDaemons(k: number): Promise<void> {
    const daemons: DaemonName[] = k === 1 ? ['sfmd', 'sfld'] : ['sfld'];
    for (const daemon of daemons) {
      if (this.daemonPid(k, daemon) !== undefined) continue;
      const tail = await logTail(this.logPath(k, daemon));
      throw new SnowflockError(
        'unavailable',
        `lab '${this.name}': ${daemon} of ${hostName(k)} died; ${tail}`,
      );
    }
  }

  async #remember(host: HostRecord): Promise<void> {
    const hosts = [...this.#record.hosts.filter(({ k }) => k !== host.k), host].sort((a, b) => a.k - b.k);
    this.#record = { ...this.#record, hosts };
    this.#writes = this.#writes.then(() => writeRecord(this.#record));
    await this.#writes;
  }
  #writes: Promise<void> = Promise.resolve();

  #netInodes(): Set<string> {
    return new Set(this.#record.hosts.map(({ netInode }) => netInode));
  }

  #closeClients(): void {
    for (const client of this.#clients.values()) client.close();
    this.#clients.clear();
  }

  #host(k: number): LabHost {
    const host = this.hosts[k - 1];
    if (host) return host;
    throw new SnowflockError(
      'bad-request',
      `lab '${this.name}' has hosts 1 to ${this.hosts.length}, not ${k}`,
    );
  }

  #hostRecord(k: number): HostRecord {
    this.#host(k);
    const host = this.#record.hosts.find((candidate) => candidate.k === k);
    if (host) return host;
    throw new SnowflockError('unavailable', `lab '${this.name}': ${hostName(k)} is not started yet`);
  }
}

function labHost(name: string, k: number): LabHost {
  return {
    k,
    name: hostName(k),
    address: hostAddress(k),
    netns: hostNetns(name, k),
    dir: hostDir(name, k),
    socketPath: hostSocket(name, k),
  };
}
