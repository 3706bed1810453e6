// What sfmd shows of the system to Prometheus: read from its state when somebody asks, so it is never out of date.

import { Gauge } from 'prom-client';
import { systemState, type SystemData } from '@snowflock/cluster';
import { VmStatus, type SystemState } from '@snowflock/protocol';
import { DaemonMetrics } from '../metrics.ts';

export class SfmdMetrics extends DaemonMetrics {
  readonly #system: () => SystemData;
  #state: SystemState = { hosts: [], clusters: [] };

  /** `heard`: what each host heard when multicast was tried, in bytes. */
  constructor(system: () => SystemData, heard: () => ReadonlyMap<string, number> = () => new Map()) {
    super();
    this.#system = system;
    this.#hostGauges();
    this.#multicastGauge(heard);
    this.#clusterGauges();
    this.#queueGauge();
  }

  protected override async refresh(): Promise<void> {
    this.#state = systemState(this.#system());
  }

  #hostGauges(): void {
    const hosts = (): SystemState['hosts'] => this.#state.hosts;
    const registers = [this.registry];
    new Gauge({
      name: 'snowflock_host_up',
      help: 'Whether a host reports itself: 1 up, 0 down',
      labelNames: ['host'],
      registers,
      collect() {
        this.reset();
        for (const { host, up } of hosts()) this.set({ host }, up ? 1 : 0);
      },
    });
    new Gauge({
      name: 'snowflock_host_cpus',
      help: 'Processors of a host that VMs may have, in all and reserved',
      labelNames: ['host', 'kind'],
      registers,
      collect() {
        this.reset();
        for (const { host, cpus, cpusFree } of hosts()) {
          this.set({ host, kind: 'total' }, cpus);
          this.set({ host, kind: 'reserved' }, cpus - cpusFree);
        }
      },
    });
    new Gauge({
      name: 'snowflock_host_memory_bytes',
      help: 'Memory of a host that VMs may have, in all and reserved',
      labelNames: ['host', 'kind'],
      registers,
      collect() {
        this.reset();
        for (const { host, ramBytes, ramFreeBytes } of hosts()) {
          this.set({ host, kind: 'total' }, ramBytes);
          this.set({ host, kind: 'reserved' }, ramBytes - ramFreeBytes);
        }
      },
    });
  }

  #multicastGauge(heard: () => ReadonlyMap<string, number>): void {
    new Gauge({
      name: 'snowflock_multicast_packet_bytes',
      help: "The longest packet that reached a host by multicast when sfmd tried it (network_mode = 'auto'); 0: none",
      labelNames: ['host'],
      registers: [this.registry],
      collect() {
        this.reset();
        for (const [host, bytes] of heard()) this.set({ host }, bytes);
      },
    });
  }

  #clusterGauges(): void {
    const clusters = (): SystemState['clusters'] => this.#state.clusters;
    const registers = [this.registry];
    new Gauge({
      name: 'snowflock_clusters',
      help: 'Impromptu clusters',
      registers,
      collect() {
        this.set(clusters().length);
      },
    });
    new Gauge({
      name: 'snowflock_vms',
      help: 'VMs that hold resources, by state',
      labelNames: ['state'],
      registers,
      collect() {
        const vms = clusters().flatMap((cluster) => cluster.vms);
        for (const state of VmStatus.options)
          this.set({ state }, vms.filter(({ status }) => status === state).length);
      },
    });
    const waiting = (): number => this.#system().queue.length;
    new Gauge({
      name: 'snowflock_tickets',
      help: 'Tickets by state: waiting (a blocked request), unused, outstanding',
      labelNames: ['state'],
      registers,
      collect() {
        const tickets = clusters().flatMap((cluster) => cluster.tickets);
        this.set({ state: 'waiting' }, waiting());
        for (const state of ['unused', 'outstanding'] as const)
          this.set({ state }, tickets.filter(({ status }) => status === state).length);
      },
    });
  }

  #queueGauge(): void {
    const system = this.#system;
    new Gauge({
      name: 'snowflock_queue_length',
      help: 'What waits: requests for tickets; cleanups that a host has not confirmed',
      labelNames: ['queue'],
      registers: [this.registry],
      collect() {
        this.set({ queue: 'tickets' }, system().queue.length);
        this.set({ queue: 'cleanups' }, system().cleanups.length);
      },
    });
  }
}
