// The memtap's side of mcdist: the socket and the timers around mcdist/receiver.ts.
//
//   deaf --a probe of the memserver came--> hears --most is lost--> distrusts for 2 s --> hears
//
// While it hears, and does not distrust, READs carry the flag that lets the memserver answer by multicast. REPORTs over the lane tell
// the memserver that there is somebody, how fast, and with which packets; as long as nothing was heard they ask for probes.
//
// Owns the UDP socket. It changes no page's state; pages and what was missed go to its owner.

import { createSocket, type Socket } from 'node:dgram';
import { MCDIST_PORT, mcdistGroup } from '@snowflock/protocol/pages';
import { mtuOf } from '../mcdist/multicast-interface.ts';
import { McdistReceiver, type MissedPage } from '../mcdist/receiver.ts';
import { Control, type SharedState } from './shared-state.ts';

/** What flow control needs to know soon, while something comes. */
const REPORT_MS = 50;
/** When nothing comes: it says that this host is there. */
const IDLE_REPORT_MS = 1000;
/** Probes that are asked for soon, and how often after that: a network without multicast seldom gets it. */
const EAGER_PROBES = 20;
const PROBE_MS = 5000;
/** How exactly promises are watched. */
const WATCH_MS = 2;
/** 4 MiB: a fork's first pages come to a process that may have to wait for a CPU. The kernel gives what net.core.rmem_max lets it. */
const RECEIVE_BUFFER_BYTES = 4 * 1024 * 1024;

export interface MulticastListenerOptions {
  readonly key: Buffer;
  /** Of the interface to listen on. */
  readonly address: string;
  readonly state: SharedState;
  /** Whether there is a use for a page. */
  readonly wanted: (region: number, page: number) => boolean;
  readonly onPage: (region: number, page: number, data: Buffer) => void;
  /** Pages that were promised and did not come. */
  readonly onMissed: (pages: readonly MissedPage[]) => void;
  readonly report: (said: { bytes: number; intervalMs: number; heardBytes: number }) => void;
}

export class MulticastListener {
  readonly #options: MulticastListenerOptions;
  readonly #receiver: McdistReceiver;
  readonly #socket: Socket;
  /** The longest packets that came, and the longest that no fragments were needed for. */
  #heard = { bytes: 0, wholeBytes: 0 };
  readonly #mtu: number;
  #saidLossy = false;
  #reported = { bytes: 0, atMs: 0 };
  #probesAsked = 0;
  #reporter: NodeJS.Timeout | undefined;
  #watcher: NodeJS.Timeout | undefined;
  #closed = false;

  constructor(options: MulticastListenerOptions) {
    const { key, address } = options;
    this.#options = options;
    this.#receiver = new McdistReceiver({ key });
    this.#mtu = mtuOf(address);
    // several memtaps of a host listen on the same port, each bound to its own group, so that the kernel sorts datagrams out
    this.#socket = createSocket({ type: 'udp4', reuseAddr: true });
    this.#socket.on('error', (error) => {
      console.error(`memtap: cannot listen to multicast, fetching by unicast: ${error.message}`);
      this.close();
    });
    this.#socket.on('message', (bytes) => this.#take(bytes));
    const group = mcdistGroup(key);
    this.#socket.bind({ port: MCDIST_PORT, address: group }, () => {
      try {
        this.#socket.addMembership(group, address);
        this.#socket.setRecvBufferSize(RECEIVE_BUFFER_BYTES);
      } catch (error) {
        this.#socket.emit('error', error);
      }
    });
  }

  get counters() {
    return { hears: this.#receiver.hears, ...this.#receiver.counters };
  }

  /** The link to the memserver is up. */
  start(): void {
    if (this.#closed || this.#reporter !== undefined) return;
    this.#reported = { bytes: this.#receiver.counters.bytes, atMs: performance.now() };
    this.#probesAsked = 0;
    this.#say(0, REPORT_MS);
  }

  /** It is down. Returns the pages that were promised over it. */
  stop(): MissedPage[] {
    clearTimeout(this.#reporter);
    clearTimeout(this.#watcher);
    this.#reporter = this.#watcher = undefined;
    Atomics.store(this.#options.state.control, Control.multicast, 0);
    return this.#receiver.abandon();
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    // whatever was promised is asked for again
    const promised = this.stop();
    this.#socket.close();
    if (promised.length > 0) this.#options.onMissed(promised);
  }

  /** The memserver says that it sent a page to all; it has not come. */
  promise(region: number, page: number, number: number): void {
    this.#receiver.promise(region, page, number, performance.now());
    this.#watch();
  }

  isPromised(region: number, page: number): boolean {
    return this.#receiver.isPromised(region, page);
  }

  #take(bytes: Buffer): void {
    const { wanted, onPage } = this.#options;
    const heard = this.#receiver.hears;
    const received = this.#receiver.datagram(bytes, performance.now(), wanted);
    // the sooner the memserver knows, the more of the first pages come this way, and the fewer fragments are lost
    const longer = this.#receiver.hears && this.#noteLength(bytes.length + 28);
    const lossy = this.#receiver.lossy && !this.#saidLossy;
    if ((longer || lossy) && this.#reporter !== undefined) this.#report();
    if (!heard) this.#setFlag();
    if (received !== undefined) onPage(received.region, received.page, received.data);
  }

  /** Whether this was the longest so far. */
  #noteLength(packetBytes: number): boolean {
    const heard = this.#heard;
    if (packetBytes <= this.#mtu) heard.wholeBytes = Math.max(heard.wholeBytes, packetBytes);
    if (packetBytes <= heard.bytes) return false;
    heard.bytes = packetBytes;
    return true;
  }

  #setFlag(): void {
    const trusts = this.#reporter !== undefined && this.#receiver.trusts(performance.now());
    Atomics.store(this.#options.state.control, Control.multicast, trusts ? 1 : 0);
  }

  #say(idleMs: number, waitMs: number): void {
    this.#reporter = setTimeout(() => {
      this.#setFlag();
      const came = this.#receiver.counters.bytes > this.#reported.bytes;
      const deaf = !this.#receiver.hears;
      const due = deaf ? (this.#probesAsked < EAGER_PROBES ? 0 : PROBE_MS) : IDLE_REPORT_MS;
      const idle = idleMs + waitMs;
      if (!came && idle < due) {
        this.#say(idle, REPORT_MS);
        return;
      }
      if (deaf) this.#probesAsked++;
      this.#report();
      this.#say(0, REPORT_MS);
    }, waitMs);
  }

  #report(): void {
    const nowMs = performance.now();
    const { bytes } = this.#receiver.counters;
    const { bytes: before, atMs } = this.#reported;
    this.#reported = { bytes, atMs: nowMs };
    this.#saidLossy = this.#receiver.lossy;
    this.#options.report({
      bytes: bytes - before,
      intervalMs: nowMs - atMs,
      heardBytes: this.#saidLossy ? this.#heard.wholeBytes : this.#heard.bytes,
    });
  }

  #giveUp(nowMs: number): void {
    this.#watcher = undefined;
    const missed = this.#receiver.missed(nowMs);
    if (this.#receiver.promisedCount > 0) this.#watch();
    if (missed.length === 0) return;
    this.#setFlag();
    this.#options.onMissed(missed);
  }

  #watch(): void {
    if (this.#watcher !== undefined || this.#closed) return;
    this.#watcher = setTimeout(() => {
      const nowMs = performance.now();
      // a process that has waited for a CPU runs its timers first: what has come meanwhile is taken before anything is given up
      setImmediate(() => this.#giveUp(nowMs));
    }, WATCH_MS);
  }
}
