// One memserver and many hosts in one process, with a network between them that loses, reorders, repeats and delays what its seed says.
// Sender and receivers are the real ones; time is a number.

import { randomBytes } from 'node:crypto';
import {
  McdistType,
  McdistSealer,
  PAGE_BYTES,
  pieceBytes,
  createMcdistHeader,
} from '@snowflock/protocol/pages';
import { McdistReceiver } from '../src/mcdist/receiver.ts';
import { type Answer, McdistSender, type Verdict } from '../src/mcdist/sender.ts';

export interface SimulationOptions {
  readonly seed: number;
  readonly hosts: number;
  readonly pages: number;
  /** Parts that a page is sent in. */
  readonly pieces: number;
  /** Share of datagrams that each host loses by chance. */
  readonly loss: number;
  readonly duplicated: number;
  readonly reordered: number;
  /** Bytes a second that a host takes in, and how much waits for it. */
  readonly hostRate: number;
  readonly hostBufferBytes: number;
  /** Hosts that take in a fiftieth of that, and hosts that say nothing more from some moment on. */
  readonly slowHosts: number;
  readonly deadHosts: number;
  /** All read the same pages in the same order; false: each in its own. */
  readonly sameOrder: boolean;
  /** Requests of a host under way at a time. */
  readonly depth: number;
}

export interface SimulationResult {
  readonly finishedMs: readonly number[];
  readonly missing: number;
  /** What left the memserver, by path. */
  readonly multicastBytes: number;
  readonly unicastBytes: number;
  /** Datagrams that found a host's buffer full, of hosts that are not slow, against all that reached them. */
  readonly flooded: number;
  readonly arrived: number;
  readonly repaired: number;
}

const LANE_DELAY_MS = 0.2;
const REPORT_MS = 50;
const END_MS = 120_000;

type Random = () => number;

export function randomOf(seed: number): Random {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** What happens when, in order of time; what is due together, in the order in which it was planned. */
class Timeline {
  nowMs = 0;
  #count = 0;
  readonly #heap: { atMs: number; order: number; what: () => void }[] = [];

  in(ms: number, what: () => void): void {
    const heap = this.#heap;
    heap.push({ atMs: this.nowMs + ms, order: this.#count++, what });
    for (let at = heap.length - 1; at > 0;) {
      const up = (at - 1) >> 1;
      if (!this.#before(at, up)) return;
      this.#swap(at, up);
      at = up;
    }
  }

  run(until: () => boolean): void {
    while (!until() && this.nowMs < END_MS) {
      const next = this.#heap[0];
      const last = this.#heap.pop();
      if (next === undefined || last === undefined) return;
      if (this.#heap.length > 0) {
        this.#heap[0] = last;
        this.#sink();
      }
      this.nowMs = next.atMs;
      next.what();
    }
  }

  #sink(): void {
    for (let at = 0; ;) {
      let least = at;
      for (const child of [2 * at + 1, 2 * at + 2])
        if (child < this.#heap.length && this.#before(child, least)) least = child;
      if (least === at) return;
      this.#swap(at, least);
      at = least;
    }
  }

  #before(a: number, b: number): boolean {
    const [x, y] = [this.#heap[a], this.#heap[b]];
    if (x === undefined || y === undefined) throw new Error('not in the heap');
    return x.atMs < y.atMs || (x.atMs === y.atMs && x.order < y.order);
  }

  #swap(a: number, b: number): void {
    const [x, y] = [this.#heap[a], this.#heap[b]];
    if (x === undefined || y === undefined) throw new Error('not in the heap');
    this.#heap[a] = y;
    this.#heap[b] = x;
  }
}

function pageData(page: number): Buffer {
  const data = Buffer.alloc(PAGE_BYTES, page & 0xff);
  data.writeUInt32LE(page, 0);
  data.writeUInt32LE(page, PAGE_BYTES - 4);
  return data;
}

function isPage(data: Buffer, page: number): boolean {
  return data.equals(pageData(page));
}

class Host {
  readonly id: number;
  readonly receiver: McdistReceiver;
  readonly here: Uint8Array;
  readonly #wanted: Uint8Array;
  readonly #order: number[];
  #next = 0;
  #underWay = 0;
  finishedMs = Infinity;
  dead = false;
  readonly slow: boolean;
  /** When what waits for it will have been taken in, by either path. */
  #freeMs = 0;
  #watchesMs = Infinity;
  #reported = { bytes: 0, atMs: 0 };
  readonly #simulation: Simulation;

  constructor(simulation: Simulation, id: number, options: { key: Buffer; slow: boolean; order: number[] }) {
    this.#simulation = simulation;
    this.id = id;
    this.slow = options.slow;
    this.receiver = new McdistReceiver({ key: options.key });
    this.here = new Uint8Array(options.order.length);
    this.#wanted = new Uint8Array(options.order.length);
    this.#order = options.order;
  }

  get finished(): boolean {
    return this.#next >= this.#order.length && this.#underWay === 0;
  }

  get #rate(): number {
    const { hostRate } = this.#simulation.options;
    return this.slow ? hostRate / 50 : hostRate;
  }

  get waitingBytes(): number {
    return (Math.max(0, this.#freeMs - this.#simulation.time.nowMs) * this.#rate) / 1000;
  }

  /** In how many milliseconds it will have taken in so much more. */
  takesIn(bytes: number): number {
    const { nowMs } = this.#simulation.time;
    this.#freeMs = Math.max(nowMs, this.#freeMs) + (bytes * 1000) / this.#rate;
    return this.#freeMs - nowMs;
  }

  /** Reads on in its order, as far as its requests go. */
  advance(): void {
    const { depth } = this.#simulation.options;
    while (this.#underWay < depth && this.#next < this.#order.length) {
      const page = this.#order[this.#next++] ?? 0;
      if (this.here[page] === 1) continue;
      this.#underWay++;
      this.#wanted[page] = 1;
      this.#ask(page, false);
    }
    if (this.finished && this.finishedMs === Infinity) this.finishedMs = this.#simulation.time.nowMs;
  }

  #ask(page: number, missed: boolean): void {
    const { time } = this.#simulation;
    const multicast = !missed && this.receiver.trusts(time.nowMs);
    time.in(LANE_DELAY_MS, () => this.#simulation.asked(this, { page, missed, multicast }));
  }

  answered(page: number, verdict: Verdict, lastNumber: number): void {
    if (this.dead) return;
    if (verdict === 'unicast') this.#take(page, pageData(page));
    else if (this.#wanted[page] === 1) {
      this.receiver.promise(0, page, lastNumber, this.#simulation.time.nowMs);
      this.#watch();
    }
  }

  datagram(bytes: Buffer): void {
    if (this.dead) return;
    const { nowMs } = this.#simulation.time;
    const came = this.receiver.datagram(bytes, nowMs, (_region, page) => this.here[page] === 0);
    if (came !== undefined) this.#take(came.page, came.data);
    this.#watch();
  }

  report(): void {
    if (this.dead) return;
    const { time } = this.#simulation;
    const { bytes } = this.receiver.counters;
    const said = {
      hears: this.receiver.hears,
      bytes: bytes - this.#reported.bytes,
      intervalMs: time.nowMs - this.#reported.atMs,
    };
    this.#reported = { bytes, atMs: time.nowMs };
    time.in(LANE_DELAY_MS, () => this.#simulation.sender.report(this.id, said, time.nowMs));
    time.in(REPORT_MS, () => this.report());
  }

  #take(page: number, data: Buffer): void {
    if (this.here[page] === 1) return;
    if (!isPage(data, page)) throw new Error(`host ${this.id} got something else for page ${page}`);
    this.here[page] = 1;
    if (this.#wanted[page] === 0) return;
    this.#wanted[page] = 0;
    this.#underWay--;
    this.advance();
  }

  #watch(): void {
    const { time } = this.#simulation;
    const due = this.receiver.nextDueMs;
    if (due >= this.#watchesMs) return;
    this.#watchesMs = due;
    time.in(Math.max(0, due - time.nowMs), () => {
      this.#watchesMs = Infinity;
      for (const { page } of this.receiver.missed(time.nowMs))
        if (this.#wanted[page] === 1) this.#ask(page, true);
      this.#watch();
    });
  }
}

class Simulation {
  readonly options: SimulationOptions;
  readonly time = new Timeline();
  readonly sender: McdistSender<number>;
  readonly hosts: Host[];
  readonly #random: Random;
  readonly #sealer: McdistSealer;
  readonly #header = createMcdistHeader();
  #unicastBytes = 0;
  #flooded = 0;
  #arrived = 0;
  #pumping = false;

  constructor(options: SimulationOptions) {
    this.options = options;
    this.#random = randomOf(options.seed);
    const key = randomBytes(32);
    this.#sealer = new McdistSealer(key);
    this.sender = new McdistSender<number>({
      transmit: (_region, page) => this.#transmit(page),
    });
    this.sender.open([options.pages]);
    const order = Array.from({ length: options.pages }, (_, page) => page);
    this.hosts = Array.from({ length: options.hosts }, (_, id) => {
      const own = options.sameOrder ? order : this.#shuffled(order);
      return new Host(this, id, { key, slow: id < options.slowHosts, order: own });
    });
  }

  run(): SimulationResult {
    const { options, time } = this;
    // the probes that a fork begins with, until everybody has heard one
    for (let probe = 0; probe < 50; probe++)
      this.#toAll(this.#seal(McdistType.probe, 0, 0, Buffer.alloc(64)));
    const living = this.hosts.slice(0, options.hosts - options.deadHosts);
    for (const host of this.hosts) {
      time.in(this.#random() * REPORT_MS, () => host.report());
      time.in(2 * REPORT_MS + this.#random() * 2, () => host.advance());
    }
    for (const host of this.hosts.slice(living.length))
      time.in(2 * REPORT_MS + this.#random() * 100, () => (host.dead = true));
    time.run(() => living.every((host) => host.finished));
    const { multicastBytes, repairedPages } = this.sender.counters;
    return {
      finishedMs: living.map((host) => host.finishedMs),
      missing: living.reduce((sum, host) => sum + (host.finished ? 0 : 1), 0),
      multicastBytes,
      unicastBytes: this.#unicastBytes,
      flooded: this.#flooded,
      arrived: this.#arrived,
      repaired: repairedPages,
    };
  }

  /** A request reached the memserver. */
  asked(
    host: Host,
    { page, missed, multicast }: { page: number; missed: boolean; multicast: boolean },
  ): void {
    const { sender, time } = this;
    const answer = (verdict: Verdict): void => {
      const number = this.#sealer.number;
      if (verdict === 'unicast') this.#unicastBytes += PAGE_BYTES;
      const bytes = verdict === 'unicast' ? PAGE_BYTES : 32;
      time.in(LANE_DELAY_MS + host.takesIn(bytes), () => host.answered(page, verdict, number));
    };
    if (!multicast && !missed) return answer('unicast');
    if (!sender.sendsToAll(0, time.nowMs)) return answer('unicast');
    const waiting: Answer = { left: 0, complete: () => answer('multicast') };
    const verdict = sender.request(
      { region: 0, page, urgent: true, missed, data: page },
      waiting,
      time.nowMs,
    );
    if (verdict !== 'multicast') answer(verdict);
    this.#pump();
  }

  #pump(): void {
    if (this.#pumping) return;
    const again = this.sender.pump(this.time.nowMs);
    if (again < 0) return;
    this.#pumping = true;
    // timers have whole milliseconds
    this.time.in(Math.max(1, Math.ceil(again)), () => {
      this.#pumping = false;
      this.#pump();
    });
  }

  #transmit(page: number): number {
    const { pieces } = this.options;
    const data = pageData(page);
    const size = pieceBytes(pieces);
    let bytes = 0;
    for (let piece = 0; piece < pieces; piece++) {
      const body = data.subarray(piece * size, Math.min(PAGE_BYTES, (piece + 1) * size));
      const datagram = this.#seal(McdistType.piece, page, piece, body);
      bytes += datagram.length;
      this.#toAll(datagram);
    }
    return bytes;
  }

  #seal(type: number, page: number, piece: number, body: Buffer): Buffer {
    return this.#sealer.seal(
      Object.assign(this.#header, { type, region: 0, page, piece, pieces: this.options.pieces }),
      body,
    );
  }

  #toAll(datagram: Buffer): void {
    for (const host of this.hosts) {
      this.#toOne(host, datagram);
      if (this.#random() < this.options.duplicated) this.#toOne(host, datagram);
    }
  }

  #toOne(host: Host, datagram: Buffer): void {
    const { loss, reordered, hostBufferBytes } = this.options;
    if (host.dead || this.#random() < loss) return;
    const delay = LANE_DELAY_MS + (this.#random() < reordered ? this.#random() * 4 : 0);
    this.time.in(delay, () => {
      if (!host.slow) this.#arrived++;
      if (host.waitingBytes + datagram.length > hostBufferBytes) {
        if (!host.slow) this.#flooded++;
        return;
      }
      this.time.in(host.takesIn(datagram.length), () => host.datagram(datagram));
    });
  }

  #shuffled(order: readonly number[]): number[] {
    const own = [...order];
    for (let at = own.length - 1; at > 0; at--) {
      const other = Math.floor(this.#random() * (at + 1));
      [own[at], own[other]] = [own[other] ?? 0, own[at] ?? 0];
    }
    return own;
  }
}

export function simulate(options: SimulationOptions): SimulationResult {
  return new Simulation(options).run();
}
