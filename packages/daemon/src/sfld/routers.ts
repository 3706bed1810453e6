// The routers of the clusters whose master VM is on this host.
//
//   (none) --start--> starting --> routes --its process ends--> gone, with a reason ─┐      end: gone for good
//                        ▲                                                            │
//                        └──────────── after 1 s, 2 s, 4 s, ... 30 s ◀────────────────┘
//
// Invariants: a router is told what may be reached only when the host's own rules keep hosts from being reached; while one is
// gone its cluster reaches nothing. Exposed ports are in the journal, and in force after each start of the router or of sfld.

import { mkdirSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { applyHostRouting, removeHostRouting, RouterProcess, type HostRouting } from '@snowflock/network';
import {
  EXPOSED_MAX,
  formatVmRef,
  SnowflockError,
  toSnowflockError,
  type ExposedPort,
  type NetworkPolicy,
  type RouterReport,
  type VmRef,
} from '@snowflock/protocol';
import { isRunning, markProcess } from '@snowflock/vm';
import { logAbout, type Log } from '../log.ts';
import type { Journal, RouterEntry } from './journal.ts';

const RETRY_MIN_MS = 1_000;
const RETRY_MAX_MS = 30_000;
/** Ports of the host that are given when none is asked for: below those that the kernel gives to connections. */
const PORT_FIRST = 20_000;
const PORT_LAST = 29_999;
/** What a report carries. */
const PROBLEM_MAX = 1000;
/** Nothing outside may be reached. */
const CLOSED: NetworkPolicy = { whitelist: [], capMbit: null, nameservers: [] };

interface Router {
  entry: RouterEntry;
  process: RouterProcess | null;
  problem: string | null;
  readonly ending: AbortController;
  readonly runs: Promise<void>;
}

export interface RoutersOptions {
  readonly runDir: string;
  readonly journal: Journal;
  readonly log: Log;
  /** Of hosts that sfmd does not name: its own. */
  readonly alsoHosts: readonly string[];
}

export class Routers {
  readonly #options: RoutersOptions;
  readonly #routers = new Map<number, Router>();
  #policy = CLOSED;
  /** Null until sfmd has told. */
  #hosts: readonly string[] | null = null;
  /** What the kernel has; null: not known. */
  #inForce: string | null = null;
  #queue: Promise<unknown> = Promise.resolve();

  constructor(options: RoutersOptions) {
    this.#options = options;
  }

  has(clusterid: number): boolean {
    return this.#routers.has(clusterid);
  }

  /** In the background: a cluster whose router does not start is closed, and it is tried again. Idempotent. */
  start(clusterid: number): void {
    if (this.#routers.has(clusterid)) return;
    this.#add({ kind: 'router', clusterid, process: null, exposed: [] });
  }

  /** Takes over what the sfld before this one had. */
  adopt(entry: RouterEntry): { keep(kept: { readonly pids: Set<number> }): void } {
    const { process } = entry;
    if (process && !isRunning(process)) entry = { ...entry, process: null };
    this.#add(entry);
    return { keep: (kept) => void (entry.process && kept.pids.add(entry.process.pid)) };
  }

  /** After adoption: ends those that nobody needs, and the host's rules where there is none. */
  async keepOnly(isNeeded: (clusterid: number) => boolean): Promise<void> {
    const rest = [...this.#routers.keys()].filter((clusterid) => !isNeeded(clusterid));
    await Promise.all(rest.map((clusterid) => this.end(clusterid)));
    await this.#syncHost();
  }

  /** Idempotent. Resolves when nothing of it is left. */
  async end(clusterid: number): Promise<void> {
    const router = this.#routers.get(clusterid);
    if (!router) return;
    this.#routers.delete(clusterid);
    router.ending.abort();
    await router.runs;
    await rm(this.#controlPath(clusterid), { force: true });
    this.#options.journal.remove(router.entry);
    await this.#syncHost();
  }

  /** As sfmd has told. */
  async setPolicy(policy: NetworkPolicy, hosts: readonly string[]): Promise<void> {
    const isNews = JSON.stringify(policy) !== JSON.stringify(this.#policy) || this.#hosts === null;
    this.#policy = policy;
    this.#hosts = [...new Set([...hosts, ...this.#options.alsoHosts])].sort();
    await this.#syncHost();
    if (isNews) await Promise.allSettled([...this.#routers.values()].map((router) => this.#push(router)));
  }

  /** Answers the port of this host. The same port of a VM again is the same. */
  async expose(
    ref: VmRef,
    { port, hostPort: wanted }: { port: number; hostPort: number | undefined },
  ): Promise<number> {
    const router = this.#routers.get(ref.clusterid);
    if (!router)
      throw new SnowflockError('unavailable', `cluster ${ref.clusterid} has no router on this host`);
    const { exposed } = router.entry;
    const known = exposed.find((each) => each.vmid === ref.vmid && each.port === port);
    if (known && (wanted ?? known.hostPort) === known.hostPort) return known.hostPort;
    if (known)
      throw new SnowflockError(
        'busy',
        `port ${port} of VM ${formatVmRef(ref)} has port ${known.hostPort} of this host already; remove that first`,
      );
    if (exposed.length >= EXPOSED_MAX)
      throw new SnowflockError('busy', `cluster ${ref.clusterid} has ${EXPOSED_MAX} exposed ports already`);
    const hostPort = await this.#freePort(wanted);
    await this.#change(router, [...router.entry.exposed, { vmid: ref.vmid, port, hostPort }]);
    return hostPort;
  }

  /** Of a VM: one port, or all. Idempotent. */
  async hide(ref: VmRef, port?: number): Promise<void> {
    const router = this.#routers.get(ref.clusterid);
    if (!router) return;
    const stays = (each: ExposedPort): boolean =>
      each.vmid !== ref.vmid || (port !== undefined && each.port !== port);
    const exposed = router.entry.exposed.filter(stays);
    if (exposed.length < router.entry.exposed.length) await this.#change(router, exposed);
  }

  report(): RouterReport[] {
    return [...this.#routers.values()].map(({ entry: { clusterid, exposed }, problem }) => ({
      ...{ clusterid, problem, exposed },
    }));
  }

  /** They run on, for the next sfld. */
  detach(): void {
    for (const { process } of this.#routers.values()) process?.detach();
  }

  get #directory(): string {
    return join(this.#options.runDir, 'r');
  }

  #controlPath(clusterid: number): string {
    return join(this.#directory, `${clusterid}`);
  }

  #add(entry: RouterEntry): void {
    const router: Router = {
      ...{ entry, process: null, problem: 'it is being started', ending: new AbortController() },
      runs: Promise.resolve(),
    };
    mkdirSync(this.#directory, { recursive: true, mode: 0o700 });
    this.#options.journal.put(entry);
    this.#routers.set(entry.clusterid, router);
    Object.assign(router, { runs: this.#run(router) });
  }

  /** Until it is ended. */
  async #run(router: Router): Promise<void> {
    const { signal } = router.ending;
    const log = logAbout(this.#options.log, router.entry);
    for (let pauseMs = RETRY_MIN_MS; !signal.aborted; pauseMs = Math.min(2 * pauseMs, RETRY_MAX_MS)) {
      try {
        router.process = await this.#begin(router);
        await this.#push(router);
        log.info({ pid: router.process.pid }, 'the router of the cluster routes');
        pauseMs = RETRY_MIN_MS;
        const stop = new Promise<void>((resolve) => signal.addEventListener('abort', () => resolve()));
        if (!signal.aborted) await Promise.race([router.process.ended, stop]);
        if (!signal.aborted) throw new SnowflockError('unavailable', 'its process has ended');
      } catch (thrown) {
        router.problem = toSnowflockError(thrown).message.slice(0, PROBLEM_MAX);
        log.error(
          { reason: router.problem },
          'the router of the cluster is gone; the cluster reaches nothing outside',
        );
      }
      await router.process?.end();
      router.process = null;
      await sleep(pauseMs, undefined, { signal }).catch(() => undefined); // it ends
    }
  }

  async #begin(router: Router): Promise<RouterProcess> {
    const { clusterid, process: mark } = router.entry;
    const options = { clusterid, controlPath: this.#controlPath(clusterid) };
    if (mark && isRunning(mark)) return RouterProcess.attachTo({ ...options, pid: mark.pid });
    const started = await RouterProcess.start({
      ...options,
      logPath: join(this.#options.runDir, 'router.log'),
      onSpawned: (pid) => this.#record(router, { process: markProcess(pid) }),
    });
    return started;
  }

  /** Tells it everything. */
  async #push(router: Router): Promise<void> {
    if (!router.process) return;
    await this.#syncHost();
    const policy = this.#hosts === null ? null : this.#policy;
    // one that was taken over keeps what it has until sfmd has told
    if (policy)
      await router.process.set({
        ...policy,
        whitelist: [...policy.whitelist],
        exposed: router.entry.exposed,
      });
    router.problem = null;
  }

  async #change(router: Router, exposed: ExposedPort[]): Promise<void> {
    if (this.#hosts === null)
      throw new SnowflockError(
        'unavailable',
        'sfmd has not told this host yet what may be reached; try again',
      );
    const before = router.entry.exposed;
    this.#record(router, { exposed });
    try {
      await this.#push(router);
    } catch (error) {
      if (exposed.length < before.length) throw error; // said again when the router is there again
      this.#record(router, { exposed: before });
      throw error;
    }
  }

  #record(router: Router, change: Partial<Pick<RouterEntry, 'process' | 'exposed'>>): void {
    const entry = { ...router.entry, ...change };
    this.#options.journal.put(entry);
    router.entry = entry;
  }

  async #freePort(wanted: number | undefined): Promise<number> {
    const taken = new Set(
      [...this.#routers.values()].flatMap(({ entry }) => entry.exposed.map(({ hostPort }) => hostPort)),
    );
    const isFree = async (port: number): Promise<boolean> => !taken.has(port) && (await canListen(port));
    if (wanted !== undefined) {
      if (await isFree(wanted)) return wanted;
      throw new SnowflockError('busy', `port ${wanted} of this host is in use; name another one, or none`);
    }
    for (let port = PORT_FIRST; port <= PORT_LAST; port++) if (await isFree(port)) return port;
    throw new SnowflockError(
      'no-resources',
      `no port of this host from ${PORT_FIRST} to ${PORT_LAST} is free`,
    );
  }

  /** The host's own rules: one change at a time, each to what is wanted when its turn comes. */
  #syncHost(): Promise<void> {
    const done = this.#queue.then(async () => {
      const routing = this.#wanted();
      const key = JSON.stringify(routing);
      if (key === this.#inForce) return;
      this.#inForce = null;
      if (routing === 'none') await removeHostRouting();
      else if (routing !== 'as it is') await applyHostRouting(routing);
      this.#inForce = key;
    });
    this.#queue = done.catch(() => undefined); // the caller's
    return done;
  }

  #wanted(): HostRouting | 'none' | 'as it is' {
    if (this.#routers.size === 0) return 'none';
    if (this.#hosts === null) return 'as it is';
    const exposed = [...this.#routers.values()].flatMap(({ entry }) =>
      entry.exposed.map(({ hostPort }) => ({ clusterid: entry.clusterid, hostPort })),
    );
    return { hosts: this.#hosts, exposed };
  }
}

function canListen(port: number): Promise<boolean> {
  const server = createServer();
  return new Promise((resolve) => {
    server.once('error', () => resolve(false));
    server.listen({ port, host: '0.0.0.0', exclusive: true }, () => server.close(() => resolve(true)));
  });
}
