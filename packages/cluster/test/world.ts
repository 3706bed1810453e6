// A system under test with everything around it played: ids that count, a seeded coin, effects recorded.

import { SnowflockError, type TicketGrant, type TicketRequest } from '@snowflock/protocol';
import {
  apply,
  brokenInvariants,
  createSystem,
  seededRandom,
  type Command,
  type Effect,
  type SystemData,
} from '../src/index.ts';

export class World {
  system: SystemData;
  readonly log: Effect[] = [];
  readonly grants = new Map<string, TicketGrant | 'refused'>();
  readonly #random: () => number;
  #ids = 0;
  nowMs = 0;
  /** Keeps the objects of the state, as sfmd does. */
  applyInPlace = false;

  constructor(options: { hosts: number; cpus?: number; ramMib?: number; seed?: number; clusterid?: number }) {
    const { hosts, cpus = 4, ramMib = 4096 } = options;
    this.#random = seededRandom(options.seed ?? 1);
    this.system = createSystem({
      hosts: Array.from({ length: hosts }, (_, index) => ({
        host: `h${index}`,
        cpus,
        ramBytes: ramMib * (1 << 20),
      })),
      clusterid: options.clusterid ?? 0,
    });
    for (const host of Object.keys(this.system.hosts)) this.report(host);
  }

  do(command: Command): Effect[] {
    const before = JSON.stringify(this.system);
    try {
      const effects = apply(this.system, command, { random: this.#random, newTicket: () => this.id() });
      // Nothing is lost in JSON, and whatever was true stays true.
      if (!this.applyInPlace) this.system = JSON.parse(JSON.stringify(this.system)) as SystemData;
      this.log.push(...effects);
      for (const effect of effects) {
        if (effect.type === 'granted') this.grants.set(effect.requestId, effect.grant);
        if (effect.type === 'refused') this.grants.set(effect.requestId, 'refused');
      }
      return effects;
    } catch (error) {
      if (!(error instanceof SnowflockError)) throw error;
      if (JSON.stringify(this.system) !== before)
        throw new Error(`not atomic: ${JSON.stringify(command)}`, { cause: error });
      throw error;
    } finally {
      const wrong = brokenInvariants(this.system);
      if (wrong.length > 0) throw new Error(`${JSON.stringify(command)}: ${wrong.join('; ')}`);
    }
  }

  id(): string {
    this.#ids += 1;
    return `00000000-0000-4000-8000-${this.#ids.toString(16).padStart(12, '0')}`;
  }

  report(host: string, instance?: string, vms?: string[]): Effect[] {
    const report = {
      address: '10.0.0.1',
      sfldPort: 1,
      accel: 'tcg' as const,
      ...(instance ? { instance } : {}),
      ...(vms ? { vms } : {}),
    };
    return this.do({ type: 'host-reported', host, report, nowMs: this.nowMs });
  }

  seed(shape: { vcpus?: number; memoryMib?: number } = {}): number {
    const effects = this.do({
      type: 'seed',
      shape: { diskImage: 'micro', vcpus: shape.vcpus ?? 1, memoryMib: shape.memoryMib ?? 256 },
    });
    const start = effects.find((effect) => effect.type === 'start-master');
    if (!start) throw new Error('no master VM was started');
    this.do({ type: 'master-started', clusterid: start.clusterid, diskBytes: 0 });
    return start.clusterid;
  }

  /** The answer, or undefined while the request waits. */
  request(
    clusterid: number,
    nclones: number,
    options: Partial<TicketRequest> & { requestId?: string; by?: number } = {},
  ): TicketGrant | 'refused' | undefined {
    const { by, requestId = this.id(), procs = false, min = 0, block = false } = options;
    this.do({ type: 'request-ticket', clusterid, by, requestId, request: { nclones, procs, min, block } });
    return this.grants.get(requestId);
  }

  /** A ticket that must be granted. */
  ticket(clusterid: number, nclones: number, by?: number): string {
    const grant = this.request(clusterid, nclones, by === undefined ? {} : { by });
    if (!grant || grant === 'refused' || grant.ticket === null) throw new Error('no ticket was granted');
    return grant.ticket;
  }

  /** Grants, redeems and launches; of the master VM, or of VM `by`. */
  fork(clusterid: number, nclones: number, by?: number): string {
    const ticket = this.ticket(clusterid, nclones, by);
    this.do({ type: 'redeem', clusterid, ticket, by });
    const clones = (this.system.clusters[clusterid]?.tickets[ticket]?.vmids ?? []).map((vmid) => ({
      vmid,
      ok: true,
    }));
    this.do({ type: 'launched', clusterid, ticket, report: { clones } });
    return ticket;
  }

  /** Of a ticket. */
  vmids(clusterid: number, ticket: string): readonly number[] {
    return this.system.clusters[clusterid]?.tickets[ticket]?.vmids ?? [];
  }

  /** Every host confirms every open cleanup. */
  clean(): void {
    for (const cleanup of [...this.system.cleanups]) this.do({ type: 'cleaned', ...cleanup });
  }
}

export function codeOf(work: () => unknown): string {
  try {
    work();
    return 'none';
  } catch (error) {
    return error instanceof SnowflockError ? error.code : String(error);
  }
}
