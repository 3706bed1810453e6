// A whole system in one process: sfmd's state with its store, hosts that really have VMs, and guests that ask. Messages are
// delivered in any order and may be lost with the sfmd that sent them; hosts crash, are cut off and come back.

import { expect } from 'vitest';
import { SnowflockError, type TicketGrant, type TicketRequest } from '@snowflock/protocol';
import {
  apply,
  brokenInvariants,
  createSystem,
  hostRooms,
  redemption,
  seededRandom,
  StoredRows,
  systemOf,
  type Command,
  type Effect,
  type EntityKind,
  type HostCapacity,
  type SystemData,
} from '../src/index.ts';

interface SimulatedVm {
  readonly vcpus: number;
  readonly memoryMib: number;
  readonly ticket: string | null;
}

interface SimulatedHost extends HostCapacity {
  readonly vms: Map<string, SimulatedVm>;
  instance: string;
  /** Off: it has no VMs. Cut: it has, and nobody reaches it. */
  state: 'on' | 'cut' | 'off';
}

/** The guest of one VM: what it was told, and what it still waits for. */
interface Guest {
  readonly clusterid: number;
  readonly vmid: number;
  readonly waiting: Map<string, TicketRequest>;
  /** Granted and told. */
  readonly tickets: Map<string, 'unused' | 'used'>;
}

interface Message {
  readonly effect: Effect;
  readonly epoch: number;
}

export class SimulatedSystem {
  system: SystemData = createSystem({ hosts: [], clusterid: 0 });
  readonly hosts = new Map<string, SimulatedHost>();
  /** By name; of master VMs, and of all clones that ever ran. */
  readonly guests = new Map<string, Guest>();
  readonly random: () => number;
  messages: Message[] = [];
  nowMs = 0;
  restarts = 0;
  grants = 0;
  /** Requests that blocked, in the order they came, and when they were answered. */
  readonly answered: string[] = [];
  #rows = new StoredRows();
  readonly #disk = new Map<string, { kind: EntityKind; json: string }>();
  #ids = 0;

  constructor(options: { seed: number; hosts: number; cpus?: number; ramMib?: number }) {
    this.random = seededRandom(options.seed);
    const { cpus = 4, ramMib = 4096 } = options;
    for (let index = 0; index < options.hosts; index++) {
      const host = `h${index}`;
      const capacity = { host, cpus, ramBytes: ramMib * 2 ** 20 };
      this.hosts.set(host, { ...capacity, vms: new Map(), instance: this.id(), state: 'on' });
    }
    this.restart();
    this.pass(0);
  }

  id(): string {
    return `00000000-0000-4000-8000-${(++this.#ids).toString(16).padStart(12, '0')}`;
  }

  pick<T>(items: readonly T[]): T | undefined {
    return items[Math.floor(this.random() * items.length)];
  }

  /** Applies and stores; false when refused. `killed`: sfmd ends after the commit, and nothing else happens. */
  do(command: Command, { killed = false } = {}): boolean {
    const roomsBefore = new Map(hostRooms(this.system).map((room) => [room.host, room]));
    let effects: Effect[];
    try {
      effects = apply(this.system, command, { random: this.random, newTicket: () => this.id() });
    } catch (error) {
      if (!(error instanceof SnowflockError) || error.code === 'internal') throw error;
      return false;
    }
    const { put, remove } = this.#rows.take(this.system).changes;
    for (const { kind, key, fields } of put)
      this.#disk.set(`${kind} ${key}`, { kind, json: JSON.stringify(fields) });
    for (const { kind, key } of remove) this.#disk.delete(`${kind} ${key}`);
    expect(brokenInvariants(this.system)).toEqual([]);
    if (killed) return true;
    for (const effect of effects) this.#carryOut(effect);
    if (effects.some((effect) => effect.type === 'granted')) this.#checkSpread(effects, roomsBefore);
    return true;
  }

  /** kill -9 and a new sfmd, from what is on the disk; what hosts were being asked may or may not have reached them. */
  restart(): void {
    this.restarts += 1;
    for (const { effect } of this.messages.splice(0)) if (this.random() < 0.5) this.#atHost(effect, null);
    this.#rows = new StoredRows();
    this.system =
      this.#disk.size === 0
        ? createSystem({ hosts: [], clusterid: 0 })
        : systemOf(
            [...this.#disk.values()].map(({ kind, json }) => ({
              kind,
              fields: JSON.parse(json) as Record<string, unknown>,
            })),
          );
    this.#rows.take(this.system);
    this.nowMs = 0;
    this.do({ type: 'restarted', hosts: [...this.hosts.values()], clusterid: 0, nowMs: 0, unixMs: 0 });
    // What a guest was told is still true.
    for (const guest of this.guests.values()) {
      const cluster = this.system.clusters[guest.clusterid];
      if (!cluster || cluster.closing) continue;
      for (const [ticket, state] of guest.tickets) {
        const known = cluster.tickets[ticket];
        const past = cluster.past.find((each) => each.ticket === ticket);
        expect(known ?? past, `ticket ${ticket}`).toBeDefined();
        if (state === 'used') expect(known?.status ?? 'outstanding').toBe('outstanding');
      }
    }
    // Every sfld asks again.
    for (const guest of this.guests.values())
      for (const [requestId, request] of guest.waiting) this.ask(guest, requestId, request);
  }

  ask(guest: Guest, requestId: string, request: TicketRequest, options?: { killed: boolean }): void {
    guest.waiting.set(requestId, request);
    const { clusterid, vmid: by } = guest;
    if (!this.do({ type: 'request-ticket', clusterid, by, requestId, request }, options))
      guest.waiting.delete(requestId);
  }

  /** Time passes: hosts that can report do, in any order. */
  pass(ms: number): void {
    this.nowMs += ms;
    const hosts = [...this.hosts.values()].filter((host) => host.state === 'on');
    for (const { host, instance, vms } of hosts.sort(() => this.random() - 0.5))
      this.do({
        ...{ type: 'host-reported', host, nowMs: this.nowMs },
        report: { address: '10.0.0.1', sfldPort: 1, accel: 'tcg', instance, vms: [...vms.keys()] },
      });
    this.do({ type: 'tick', nowMs: this.nowMs });
  }

  /** One message reaches its host, if that can be now. */
  deliver(): void {
    const ready = this.messages.filter(({ effect }) => this.#mayGo(effect));
    const message = this.pick(ready);
    if (!message) return;
    this.messages.splice(this.messages.indexOf(message), 1);
    this.#atHost(message.effect, message.epoch);
  }

  deliverAll(): void {
    for (let left = 100_000; this.messages.some(({ effect }) => this.#mayGo(effect)); left--) {
      expect(left).toBeGreaterThan(0);
      this.deliver();
    }
  }

  /** The guest forks with a ticket; sfmd may end at any point of it, and the sfld asks again. */
  fork(guest: Guest, ticket: string, killAt: 'redeem' | 'launch' | null): void {
    const { clusterid, vmid: by } = guest;
    const redeem: Command = { type: 'redeem', clusterid, ticket, by, redemption: this.id() };
    const redeemed = this.do(redeem, { killed: killAt === 'redeem' });
    if (killAt === 'redeem') this.restart();
    if (!redeemed || !this.do(redeem)) return;
    guest.tickets.set(ticket, 'used');
    const clones = redemption(this.system, { clusterid, ticket }).clones.map(({ vmid, host: name }) => {
      const host = this.hosts.get(name);
      return { vmid, ok: host?.state === 'on' && host.vms.has(`${clusterid}:${vmid}`), reason: 'not there' };
    });
    const launched: Command = { type: 'launched', clusterid, ticket, report: { clones } };
    this.do(launched, { killed: killAt === 'launch' });
    if (killAt === 'launch') this.restart();
    this.do(launched);
    for (const { vmid, ok } of clones) if (ok) this.#addGuest({ clusterid, vmid });
  }

  #addGuest(vm: { clusterid: number; vmid: number }): void {
    this.guests.set(`${vm.clusterid}:${vm.vmid}`, { ...vm, waiting: new Map(), tickets: new Map() });
  }

  /** Every VM on every host, within what the host has: nothing was promised twice. */
  checkHosts(): void {
    for (const { host, cpus, ramBytes, vms } of this.hosts.values()) {
      const all = [...vms.values()];
      expect(
        all.reduce((sum, vm) => sum + vm.vcpus, 0),
        `cpus of ${host}`,
      ).toBeLessThanOrEqual(cpus);
      expect(
        all.reduce((sum, vm) => sum + vm.memoryMib * 2 ** 20, 0),
        host,
      ).toBeLessThanOrEqual(ramBytes);
    }
  }

  #carryOut(effect: Effect): void {
    switch (effect.type) {
      case 'granted':
        return this.#granted(effect.requestId, effect.grant);
      case 'refused':
        for (const guest of this.guests.values()) guest.waiting.delete(effect.requestId);
        return;
      case 'start-master':
      case 'prepare-source':
      case 'prepare-clones':
      case 'clean-up':
        this.messages.push({ effect, epoch: this.restarts });
        return;
      default:
    }
  }

  #granted(requestId: string, grant: TicketGrant): void {
    for (const guest of this.guests.values()) {
      if (!guest.waiting.delete(requestId)) continue;
      this.grants += 1;
      this.answered.push(requestId);
      if (grant.ticket === null) return;
      guest.tickets.set(grant.ticket, 'unused');
      this.do({ type: 'delivered', clusterid: guest.clusterid, ticket: grant.ticket });
    }
  }

  /** hosts.ts of sfmd: nothing is destroyed while something of the cluster is being built there. */
  #mayGo(effect: Effect): boolean {
    if (!('host' in effect) || this.hosts.get(effect.host)?.state !== 'on') return false;
    if (effect.type !== 'clean-up') return true;
    return !this.messages.some(
      ({ effect: other }) =>
        'host' in other &&
        (other.type === 'prepare-clones' ||
          other.type === 'prepare-source' ||
          other.type === 'start-master') &&
        other.host === effect.host &&
        other.clusterid === effect.clusterid,
    );
  }

  /** `epoch`: of the sfmd that asked, whose successor gets no answer; null: nobody gets one. */
  #atHost(effect: Effect, epoch: number | null): void {
    if (!('host' in effect)) return;
    const host = this.hosts.get(effect.host);
    if (host?.state !== 'on') return;
    const answer = (command: Command): void => void (epoch === this.restarts && this.do(command));
    switch (effect.type) {
      case 'start-master': {
        const { clusterid, shape } = effect;
        host.vms.set(`${clusterid}:0`, { vcpus: shape.vcpus, memoryMib: shape.memoryMib, ticket: null });
        if (epoch === this.restarts) this.#addGuest({ clusterid, vmid: 0 });
        return answer({ type: 'master-started', clusterid, diskBytes: 0 });
      }
      case 'prepare-source': {
        const { clusterid, ticket } = effect;
        return answer({
          ...{ type: 'prepared', clusterid, ticket, host: host.host },
          part: 'source',
          error: null,
        });
      }
      case 'prepare-clones': {
        const { clusterid, ticket, clones, shape } = effect;
        for (const { vmid, vcpus } of clones)
          host.vms.set(`${clusterid}:${vmid}`, { vcpus, memoryMib: shape.memoryMib, ticket });
        return answer({
          ...{ type: 'prepared', clusterid, ticket, host: host.host },
          part: 'clones',
          error: null,
        });
      }
      case 'clean-up': {
        const { type: _, ...cleanup } = effect;
        for (const [name, vm] of host.vms) {
          const [clusterid, vmid] = name.split(':').map(Number);
          if (clusterid !== cleanup.clusterid) continue;
          if (
            cleanup.vmid !== null
              ? cleanup.vmid === vmid
              : cleanup.ticket === null || cleanup.ticket === vm.ticket
          )
            host.vms.delete(name);
        }
        return answer({ type: 'cleaned', ...cleanup });
      }
      default:
    }
  }

  /** The second rule of the default allocator, for what this command granted. */
  #checkSpread(effects: readonly Effect[], before: ReadonlyMap<string, { clones: number }>): void {
    const used = new Set<string>();
    let need = { cpus: 0, ramBytes: 0 };
    for (const effect of effects)
      if (effect.type === 'prepare-clones') {
        used.add(effect.host);
        need = { cpus: effect.shape.vcpus, ramBytes: effect.shape.memoryMib * 2 ** 20 };
      }
    if (effects.filter((effect) => effect.type === 'granted').length !== 1) return;
    const rooms = hostRooms(this.system);
    const most = Math.max(
      ...rooms
        .filter((room) => used.has(room.host) && room.clones > (before.get(room.host)?.clones ?? 0))
        .map((room) => room.clones),
    );
    for (const room of rooms)
      if (room.cpusFree >= need.cpus && room.ramFreeBytes >= need.ramBytes)
        expect(
          most,
          `clones on a host, and ${room.clones} on ${room.host}, which had room`,
        ).toBeLessThanOrEqual(room.clones + 1);
  }
}
