// The memserver's TCP side: accepts lanes, lets each prove that it holds the fork's key, serves pages to all of them.
//
// Owns the listening socket and every session. Fairness: what a guest waits for (urgent reads) is served the moment it
// arrives; everything else is served in turns of a few requests per client and round of the event loop.

import { createServer, type AddressInfo, type Server, type Socket } from 'node:net';
import type { SnowflockError } from '@snowflock/protocol/pages';
import { PageRegion } from '@snowflock/protocol/pages';
import { MulticastServer } from './multicast-server.ts';
import { ClientSession, type SessionCounters } from './client-session.ts';
import { PageBufferPool } from './page-buffers.ts';
import { NeedFeed } from './need-feed.ts';
import { NeedLog } from './need-log.ts';
import type { Snapshot } from './snapshot.ts';
import { WakeUpLog } from './wake-up-log.ts';

/** Two lanes for each memtap, one memtap for each host: 256 hosts. Beyond that a fork wants multicast, not more lanes. */
export const MAX_CLIENTS = 512;

export interface PageServerStats extends SessionCounters {
  readonly clients: number;
  readonly refusedClients: number;
  readonly failedHandshakes: number;
  readonly multicast: ReturnType<MulticastServer['stats']> | null;
}

export class PageServer {
  readonly #server: Server;
  readonly #snapshot: Snapshot;
  readonly #onReadFailed: (error: SnowflockError) => void;
  readonly #sessions = new Set<ClientSession>();
  readonly #buffers = new PageBufferPool();
  readonly wakeUp = new WakeUpLog();
  readonly needs = new NeedLog();
  #needFeed: NeedFeed | undefined;
  readonly #counters: SessionCounters = {
    requests: 0,
    errors: 0,
    sentBytes: 0,
    compressedPages: 0,
    droppedClients: 0,
  };
  #key: Buffer | undefined;
  #multicast: MulticastServer | undefined;
  #sessionCount = 0;
  #failedHandshakes = 0;
  #refusedClients = 0;
  #turnScheduled = false;

  constructor(options: {
    readonly snapshot: Snapshot;
    readonly onReadFailed: (error: SnowflockError) => void;
  }) {
    this.#snapshot = options.snapshot;
    this.#onReadFailed = options.onReadFailed;
    this.#server = createServer({ noDelay: true, keepAlive: true, keepAliveInitialDelay: 10_000 }, (socket) =>
      this.#accept(socket),
    );
  }

  async listen(options: { readonly host: string; readonly port: number }): Promise<number> {
    await new Promise<void>((resolve, reject) => {
      this.#server.once('error', reject);
      this.#server.listen(options.port, options.host, resolve);
    });
    return (this.#server.address() as AddressInfo).port;
  }

  /** `multicastAddress`: of the interface that pages may be sent to many hosts at once from. */
  configure(options: {
    readonly key: Buffer;
    readonly multicastAddress: string | undefined;
    /** What an earlier fork's clones needed; undefined: clients are told of no needs. */
    readonly needs: Buffer | undefined;
  }): void {
    const { key, multicastAddress: address, needs } = options;
    this.#key = key;
    // what goes by multicast goes to all anyway
    if (needs) this.needs.open({ earlier: needs, tellsOwn: address === undefined });
    if (address !== undefined && this.#multicast === undefined)
      this.#multicast = new MulticastServer({ key, address });
  }

  /** Of a relay: hosts are told of the needs that the memtap with this control socket hears of. Throws 'unavailable'. */
  async passOnNeeds(controlPath: string): Promise<void> {
    this.#needFeed = await NeedFeed.open({ controlPath, log: this.needs });
  }

  /** The snapshot was installed: whoever connected before the fork begins to fetch. */
  announceFrozen(): void {
    const counts: number[] = [];
    counts[PageRegion.ram] = this.#snapshot.presence.pageCount;
    counts[PageRegion.rehearsal] = 0;
    counts[PageRegion.disk] = this.#snapshot.disk?.pageCount ?? 0;
    this.#multicast?.sender.open(counts);
    for (const session of this.#sessions) session.announceFrozen();
  }

  get clientCount(): number {
    return this.#sessions.size;
  }

  stats(): PageServerStats {
    return {
      clients: this.#sessions.size,
      refusedClients: this.#refusedClients,
      failedHandshakes: this.#failedHandshakes,
      ...this.#counters,
      multicast: this.#multicast?.stats() ?? null,
    };
  }

  close(): void {
    this.#multicast?.close();
    this.#needFeed?.close();
    this.needs.close();
    this.#server.close();
    for (const session of this.#sessions) session.destroy();
  }

  #accept(socket: Socket): void {
    if (this.#key === undefined || this.#sessions.size >= MAX_CLIENTS) {
      this.#refusedClients++;
      socket.destroy();
      return;
    }
    const session = new ClientSession({
      socket,
      key: this.#key,
      snapshot: this.#snapshot,
      buffers: this.#buffers,
      counters: this.#counters,
      wakeUp: this.wakeUp,
      needs: this.needs,
      id: ++this.#sessionCount,
      multicast: this.#multicast,
      onBacklog: () => this.#scheduleTurn(),
      onHandshakeFailed: () => this.#failedHandshakes++,
      onReadFailed: this.#onReadFailed,
    });
    this.#sessions.add(session);
    socket.on('close', () => this.#sessions.delete(session));
  }

  #scheduleTurn(): void {
    if (this.#turnScheduled) return;
    this.#turnScheduled = true;
    setImmediate(() => {
      this.#turnScheduled = false;
      let more = false;
      for (const session of this.#sessions) more = session.serveTurn() || more;
      if (more) this.#scheduleTurn();
    });
  }
}
