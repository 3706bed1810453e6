// What one sfld shows to Prometheus. Forks and clones are counted as they happen; what memtaps and memservers have fetched
// and served is asked of them when somebody scrapes.
//
// Invariant: a scrape waits for no process longer than its deadline, and asks none again that has not answered yet; figures
// then are those of the last answer.

import { Counter, Gauge, Histogram } from 'prom-client';
import type { CloneRecord, ForkRecord, LaunchReply } from '@snowflock/protocol';
import type { MemserverStats, MemtapStats } from '@snowflock/replication';
import { DaemonMetrics } from '../metrics.ts';
import { FetchTotals } from './fetch-totals.ts';
import {
  FETCH_COUNTERS,
  FETCH_FIGURES,
  memserverFigures,
  memtapFigures,
  relayFigures,
} from './fetch-figures.ts';
import { WaitsHistogram } from './waits-histogram.ts';

/** A memtap answers in a ms; one that is starved of CPU by its clones is left out of this scrape. */
const SAMPLE_DEADLINE_MS = 1000;
/** The pause is some ms whatever a VM's size. */
const PAUSE_BUCKETS_SECONDS = [0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1];
const FORK_BUCKETS_SECONDS = [0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1, 1.5, 2, 3, 5, 10, 30];

/** Of the processes that are asked. */
const KINDS = ['memtap', 'memserver', 'relay'] as const;

type Sample<Stats> = readonly [ticket: string, stats: () => Promise<Stats | null>];

/** What of a host is asked when somebody scrapes. */
export interface HostView {
  readonly memtaps: () => Sample<MemtapStats>[];
  readonly memservers: () => Sample<MemserverStats>[];
  readonly relays: () => Sample<MemserverStats>[];
  readonly vms: () => { readonly master: number; readonly clone: number };
}

export class SfldMetrics extends DaemonMetrics {
  readonly #pause: Histogram;
  readonly #toRunning: Histogram;
  readonly #cloneLaunch: Histogram;
  readonly #forks: Counter<'result'>;
  readonly #clones: Counter<'result'>;
  readonly #masterReachable: Gauge;
  readonly #totals = new FetchTotals(FETCH_FIGURES);
  readonly #memtaps = new Map<string, MemtapStats>();
  readonly #memservers = new Set<string>();
  readonly #asked = new Set<string>();
  #view: HostView | null = null;

  constructor() {
    super();
    const registers = [this.registry];
    this.#pause = new Histogram({
      name: 'snowflock_fork_pause_seconds',
      help: 'How long a fork paused the VM',
      buckets: PAUSE_BUCKETS_SECONDS,
      registers,
    });
    this.#toRunning = new Histogram({
      name: 'snowflock_fork_to_running_seconds',
      help: 'From the call of clone_master reaching sfld until its last clone runs',
      buckets: FORK_BUCKETS_SECONDS,
      registers,
    });
    this.#cloneLaunch = new Histogram({
      name: 'snowflock_clone_launch_seconds',
      help: 'From the descriptor reaching the host of a clone until that clone has its identity',
      buckets: FORK_BUCKETS_SECONDS,
      registers,
    });
    this.#forks = new Counter({
      name: 'snowflock_forks_total',
      help: 'Forks of VMs of this host: ok (at least one clone runs) or failed',
      labelNames: ['result'],
      registers,
    });
    this.#clones = new Counter({
      name: 'snowflock_clones_total',
      help: 'Clones launched on this host: ok or failed; exited and lost count those that ended later',
      labelNames: ['result'],
      registers,
    });
    this.#masterReachable = new Gauge({
      name: 'snowflock_sfmd_reachable',
      help: 'Whether sfmd took the last report of this host: 1 yes, 0 no',
      registers,
    });
    this.#fetchCounters();
    new WaitsHistogram({ totals: this.#totals, registry: this.registry });
    this.#gauges();
  }

  watch(view: HostView): void {
    this.#view = view;
  }

  forked({ pauseMs, totalMs }: ForkRecord): void {
    this.#pause.observe(pauseMs / 1000);
    this.#toRunning.observe(totalMs / 1000);
  }

  forkEnded(result: 'ok' | 'failed'): void {
    this.#forks.inc({ result });
  }

  launched({ clones }: LaunchReply): void {
    for (const { ok } of clones) this.#clones.inc({ result: ok ? 'ok' : 'failed' });
  }

  identified({
    descriptorAtMs,
    identifiedAtMs,
  }: Pick<CloneRecord, 'descriptorAtMs' | 'identifiedAtMs'>): void {
    if (descriptorAtMs !== null && identifiedAtMs !== null)
      this.#cloneLaunch.observe((identifiedAtMs - descriptorAtMs) / 1000);
  }

  cloneGone({ status }: Pick<CloneRecord, 'status'>): void {
    if (status === 'exited' || status === 'lost') this.#clones.inc({ result: status });
  }

  masterReachable(reachable: boolean): void {
    this.#masterReachable.set(reachable ? 1 : 0);
  }

  memtapSaid(ticket: string, stats: MemtapStats): void {
    this.#memtaps.set(ticket, stats);
    this.#totals.update(`memtap ${ticket}`, memtapFigures(stats));
  }

  memserverSaid(ticket: string, stats: MemserverStats): void {
    this.#memservers.add(ticket);
    this.#totals.update(`memserver ${ticket}`, memserverFigures(stats));
  }

  relaySaid(ticket: string, stats: MemserverStats): void {
    this.#totals.update(`relay ${ticket}`, relayFigures(stats));
  }

  /** All processes of a ticket are gone. */
  ticketGone(ticket: string): void {
    this.#memtaps.delete(ticket);
    this.#memservers.delete(ticket);
    for (const kind of KINDS) this.#totals.retire(`${kind} ${ticket}`);
  }

  protected override async refresh(): Promise<void> {
    if (!this.#view) return;
    const { memtaps, memservers, relays } = this.#view;
    const samples = [
      ...this.#ask('memtap', memtaps, (ticket, stats) => this.memtapSaid(ticket, stats)),
      ...this.#ask('memserver', memservers, (ticket, stats) => this.memserverSaid(ticket, stats)),
      ...this.#ask('relay', relays, (ticket, stats) => this.relaySaid(ticket, stats)),
    ];
    const late = Promise.withResolvers<void>();
    const timer = setTimeout(late.resolve, SAMPLE_DEADLINE_MS);
    await Promise.race([Promise.allSettled(samples), late.promise]);
    clearTimeout(timer);
  }

  #ask<S>(
    kind: (typeof KINDS)[number],
    live: () => Sample<S>[],
    said: (ticket: string, stats: S) => void,
  ): Promise<void>[] {
    return live().map(async ([ticket, stats]) => {
      const id = `${kind} ${ticket}`;
      if (this.#asked.has(id)) return;
      this.#asked.add(id);
      try {
        const answer = await stats();
        // It may have gone while it was asked: then it is counted already.
        if (answer !== null && live().some(([each]) => each === ticket)) said(ticket, answer);
      } finally {
        this.#asked.delete(id);
      }
    });
  }

  #fetchCounters(): void {
    const totals = this.#totals;
    const byName = Map.groupBy(FETCH_COUNTERS, ({ name }) => name);
    for (const [name, rows] of byName)
      new Counter({
        name,
        help: rows[0]?.help ?? '',
        labelNames: rows.flatMap(({ labels }) => Object.keys(labels).slice(0, 1)).slice(0, 1),
        registers: [this.registry],
        collect() {
          this.reset();
          for (const { labels, figure } of rows) this.inc({ ...labels }, totals.total(figure));
        },
      });
  }

  #gauges(): void {
    const registers = [this.registry];
    const memtaps = this.#memtaps;
    const memservers = this.#memservers;
    const vms = (): { master: number; clone: number } => this.#view?.vms() ?? { master: 0, clone: 0 };
    new Gauge({
      name: 'snowflock_host_vms',
      help: 'VMs on this host by kind: master VMs and clones (those that are prepared included)',
      labelNames: ['kind'],
      registers,
      collect() {
        const { master, clone } = vms();
        this.set({ kind: 'master' }, master);
        this.set({ kind: 'clone' }, clone);
      },
    });
    new Gauge({
      name: 'snowflock_page_processes',
      help: 'Memservers and memtaps of this host that have answered',
      labelNames: ['kind'],
      registers,
      collect() {
        this.set({ kind: 'memserver' }, memservers.size);
        this.set({ kind: 'memtap' }, memtaps.size);
      },
    });
    new Gauge({
      name: 'snowflock_waiting_faults',
      help: 'Queue length: READs that wait now for a page from another host',
      registers,
      collect() {
        this.set([...memtaps.values()].reduce((sum, { heldReads }) => sum + heldReads, 0));
      },
    });
    new Gauge({
      name: 'snowflock_fault_seconds',
      help: 'Time of a fault that was fetched, by quantile; of several memtaps the slowest',
      labelNames: ['quantile'],
      registers,
      collect() {
        this.reset();
        const all = [...memtaps.values()].map(({ missLatency }) => missLatency);
        if (all.length === 0) return;
        this.set({ quantile: '0.5' }, Math.max(...all.map(({ medianUs }) => medianUs)) / 1e6);
        this.set({ quantile: '0.99' }, Math.max(...all.map(({ p99Us }) => p99Us)) / 1e6);
        this.set({ quantile: '1' }, Math.max(...all.map(({ maxUs }) => maxUs)) / 1e6);
      },
    });
  }
}
