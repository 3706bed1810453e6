// The memtap of a clone group, which serves all of its clones, where it fetches from, and who is fed from it.
//
//   started ──connectAhead──▶ linked ──attach──▶ serving ──▶ source lost        and from each of them ──▶ detached or gone
//
// Invariant: a source is lost once, and for good: whoever asks afterwards hears why.

import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import {
  PAGE_BYTES,
  PageSourceReply,
  RelayReply,
  SnowflockError,
  toSnowflockError,
  type Descriptor,
  type PrepareClones,
  type SfldAt,
} from '@snowflock/protocol';
import {
  cleanupMount,
  MemtapProcess,
  PresenceMap,
  type MemserverStats,
  type MemtapFilesOptions,
  type MemtapStats,
  type PageSource,
} from '@snowflock/replication';
import { isRunning, markProcess, type ProcessMark } from '@snowflock/vm';
import type { z } from 'zod';
import type { Log } from '../log.ts';
import type { HostContext } from './context.ts';
import { multicastAddressOf } from './multicast-address.ts';
import { Relay, type RelayMark, type RelayOptions } from './relay.ts';

/** The parent's host may hear of the ticket later than this one, and then starts its memserver. */
const SOURCE_TIMEOUT_MS = 15_000;
const SOURCE_RETRY_MS = 50;
const REHEARSAL_TIMEOUT_MS = 3_000;

export interface GroupMemtapOptions {
  readonly context: HostContext;
  readonly request: PrepareClones;
  /** Of the group's files. */
  readonly directory: string;
  readonly log: Log;
  /** A relay was started: for the journal. */
  readonly onRelay: (mark: RelayMark | null) => void;
  /** No page can be fetched any more; `sourceLost` says why. */
  readonly onSourceLost: () => void;
}

export class GroupMemtap implements AsyncDisposable {
  readonly #options: GroupMemtapOptions;
  readonly #memtap: MemtapProcess;
  readonly #multicastAddress: Promise<string | undefined>;
  readonly #ending = new AbortController();
  /** What passes pages on from here; null: nothing does. */
  #relay: Relay | null = null;
  #relayStarting: Promise<void> = Promise.resolve();
  /** Whose relay pages come by; null: none, or it is not known yet. */
  #via: PageSource | null = null;
  #sourceLost: string | null = null;
  #saidDeaf = false;

  private constructor(options: GroupMemtapOptions, memtap: MemtapProcess) {
    this.#options = options;
    this.#memtap = memtap;
    this.#multicastAddress = multicastAddressOf(options.context, options.request.multicastHost);
    memtap.onSourceLost(({ reason }) => this.#lose(reason));
    void memtap.exited.then(() => this.#lose('its memtap ended'));
  }

  static async start(options: GroupMemtapOptions): Promise<GroupMemtap> {
    const { context, request, directory } = options;
    const { clusterid, ticket, shape, diskBytes, compress } = request;
    const memtap = await MemtapProcess.start({
      ...pathsIn(directory),
      ramBytes: shape.memoryMib * 2 ** 20,
      ...{ diskBytes, compress },
      logPath: join(context.runDir, 'memtap.log'),
      subject: { clusterid, ticket },
    });
    return new GroupMemtap(options, memtap);
  }

  /** Takes over what the last sfld had. Throws 'source-lost' if it has ended. */
  static async adopt(
    options: GroupMemtapOptions,
    marks: { readonly memtap: ProcessMark | null; readonly relay: RelayMark | null },
  ): Promise<GroupMemtap> {
    if (!marks.memtap || !isRunning(marks.memtap))
      throw new SnowflockError('source-lost', 'its memtap ended while no sfld ran here');
    const { pid } = marks.memtap;
    const memtap = new GroupMemtap(
      options,
      await MemtapProcess.attachTo({ pid, ...pathsIn(options.directory) }),
    );
    memtap.#relay = await Relay.adopt(memtap.#relayOptions, marks.relay);
    return memtap;
  }

  /** What a memtap that did not end in order has left mounted in `directory`. */
  static async cleanUp(directory: string): Promise<void> {
    await cleanupMount(pathsIn(directory).mountPath);
  }

  /** Where the disk of the fork is, or will be, in `directory`. */
  static diskPath(directory: string): string {
    return join(pathsIn(directory).mountPath, 'disk');
  }

  /** Of the memtap, and of its relay, if it has one. */
  get pids(): readonly number[] {
    return [this.#memtap.pid, ...(this.#relay ? [this.#relay.pid] : [])];
  }

  get mark(): ProcessMark | null {
    return markProcess(this.#memtap.pid);
  }

  get ramPath(): string {
    return this.#memtap.ramPath;
  }

  /** Null while pages can be fetched. */
  get sourceLost(): string | null {
    return this.#sourceLost;
  }

  /** Connects before there is a fork, so that the fork need not wait for it; attach() does without. Never rejects. */
  async connectAhead(): Promise<void> {
    const { request } = this.#options;
    const { ticket, parent, relay } = request;
    if (relay && relay.feeds.length > 0) this.#relayStarting = this.#startRelay();
    const source = await this.#askAhead(parent, `/v1/sources/${ticket}/pages`, PageSourceReply);
    const key = source && Buffer.from(source.keyHex, 'hex');
    void this.#relayStarting.then(() => this.#relay?.configure(key));
    if (!source || !key) return;
    if (relay?.via) this.#via = await this.#askAhead(relay.via, `/v1/tickets/${ticket}/relay`, RelayReply);
    try {
      await this.#memtap.connect({
        ...{ sources: this.#sourcesFrom(source), key, prefetch: source.prefetch },
        multicastAddress: await this.#multicastAddress,
      });
    } catch (error) {
      this.#options.log.debug({ err: error }, 'not connected ahead of the fork');
    }
  }

  /** Resolves when it is connected and has rehearsed, or cannot be. Never rejects: nothing depends on it but speed. */
  async rehearsed(): Promise<void> {
    try {
      await this.#memtap.rehearsed(REHEARSAL_TIMEOUT_MS);
    } catch (error) {
      this.#options.log.debug({ err: error }, 'not rehearsed ahead of the fork');
    }
  }

  /** What another host says of the ticket as soon as it has heard of it; null when it does not. */
  async #askAhead<T>(at: SfldAt, path: string, reply: z.ZodType<T>): Promise<T | null> {
    const { context, log } = this.#options;
    const signal = AbortSignal.any([this.#ending.signal, AbortSignal.timeout(SOURCE_TIMEOUT_MS)]);
    const { host, address, sfldPort: port } = at;
    for (;;) {
      try {
        const asked = { method: 'GET', path, reply, timeoutMs: SOURCE_TIMEOUT_MS, signal } as const;
        return await context.peers.client({ host, address, port }).request(asked);
      } catch (error) {
        if (toSnowflockError(error).code !== 'no-such-ticket' || signal.aborted) {
          log.debug({ err: error, path }, 'not connected ahead of the fork');
          return null;
        }
      }
      await sleep(SOURCE_RETRY_MS, undefined, { signal }).catch(() => undefined);
    }
  }

  /** In the order in which they are tried. */
  #sourcesFrom({ address, port }: PageSource): PageSource[] {
    return [...(this.#via ? [this.#via] : []), { address, port }];
  }

  get #relayOptions(): RelayOptions {
    const { context, request, directory, log } = this.#options;
    return { context, directory, log, ticket: request.ticket, clusterid: request.clusterid };
  }

  /** Never rejects: hosts that are not served from here ask the parent's. */
  async #startRelay(): Promise<void> {
    const { log, onRelay } = this.#options;
    try {
      this.#relay = await Relay.start(this.#relayOptions);
      onRelay(this.#relay.mark);
    } catch (error) {
      log.warn({ reason: toSnowflockError(error).message }, 'this host does not pass on pages');
    }
  }

  /** Where pages are passed on from here. Throws 'no-such-ticket' when they are not, as yet or at all. */
  async relaySource(): Promise<PageSource> {
    await this.#relayStarting;
    if (!this.#relay)
      throw new SnowflockError('unavailable', `ticket ${this.#options.request.ticket} has no relay here`);
    return this.#relay.source();
  }

  /** Of the relay. */
  async relayStats(): Promise<MemserverStats | null> {
    return (await this.#relay?.stats()) ?? null;
  }

  /**
   * Of a fork that has been made: what was read before it waits no longer. What was fetched ahead of a VM that has moved while its device
   * state is loaded would stand in the way of what the load needs, and prolong the VM's pause: `prefetch` follows when it runs.
   * `earlier`: that of an earlier fork of the same VM; what has not changed since, and it has, is not fetched once more.
   */
  async attach({ header, presence }: Descriptor, earlier: GroupMemtap | null): Promise<void> {
    const { source } = header;
    const prefetch = this.#options.request.moved ? [] : header.prefetch;
    const { presencePath } = this.files;
    const multicastAddress = await this.#multicastAddress;
    const attached = this.#memtap.attach({
      sources: this.#sourcesFrom(source),
      key: Buffer.from(source.keyHex, 'hex'),
      ...{ multicastAddress, presence, prefetch },
      near: earlier && header.unchanged ? await earlier.near(header.unchanged.pages) : undefined,
    });
    await Promise.all([attached, writeFile(presencePath, presence, { mode: 0o600 })]);
    void this.#relay?.serve({ ...this.files, controlPath: this.#memtap.controlPath });
  }

  /** Those of its pages that are also `unchanged`, a presence map in base64. */
  async near(unchanged: string): Promise<{ ramPath: string; pages: PresenceMap } | undefined> {
    try {
      const { ram } = await this.#memtap.arrived();
      const { pageCount: maxPages } = ram;
      const same = PresenceMap.decode(Buffer.from(unchanged, 'base64'), { maxPages });
      return { ramPath: this.#memtap.ramPath, pages: ram.common(same) };
    } catch (error) {
      this.#options.log.debug({ err: error }, 'nothing is copied from an earlier fork');
      return undefined;
    }
  }

  /** What it serves, and what says which pages of RAM there are: what forks of its clones are read over. */
  get files(): MemtapFilesOptions {
    const { directory, request } = this.#options;
    const pageCount = Math.ceil(request.diskBytes / PAGE_BYTES);
    return {
      ramPath: this.#memtap.ramPath,
      presencePath: join(directory, 'presence'),
      ...(pageCount === 0 ? {} : { disk: { path: this.#memtap.diskPath, pageCount } }),
    };
  }

  /** What the VM needs next, most likely. Never rejects: what is not fetched now is fetched when it is needed. */
  async prefetch(pages: readonly number[]): Promise<void> {
    try {
      await this.#memtap.prefetch(pages);
    } catch (error) {
      this.#options.log.debug({ err: error }, 'no pages were fetched ahead');
    }
  }

  /** What others needed, from now on as well. Never rejects, as prefetch(). */
  async push(): Promise<void> {
    try {
      await this.#memtap.push();
    } catch (error) {
      this.#options.log.debug({ err: error }, 'no pages that others needed are fetched');
    }
  }

  /** From here on pages come from a memserver of this host, which has all of them. */
  async feedFrom({ port, key }: { readonly port: number; readonly key: Buffer }): Promise<void> {
    await this.#memtap.move({ sources: [{ address: this.#options.context.address, port }], key });
  }

  /** What it counts; null when it does not say. */
  async stats(): Promise<MemtapStats | null> {
    if (this.#sourceLost !== null) return null;
    try {
      return await this.#memtap.stats();
    } catch (error) {
      this.#options.log.debug({ err: error }, 'the memtap gave no figures');
      return null;
    }
  }

  /** A clone whose memory cannot be fetched dies of it, and that may be seen before the memtap has said why. */
  async askForSource(): Promise<void> {
    const said = await this.stats();
    if (said !== null && said.sourceLost !== null) this.#lose(said.sourceLost);
  }

  /** Of a fork that multicast was to serve, and did not. It had from the ticket to the end of a clone to hear something. */
  noteDeafness({ multicast }: MemtapStats): void {
    if (multicast === null || multicast.hears || this.#saidDeaf) return;
    this.#saidDeaf = true;
    const { multicastHost } = this.#options.request;
    this.#options.log.info(
      { multicastHost },
      'no multicast reached this host; its clones had their pages by unicast',
    );
  }

  /** From here on its end is nobody's loss. */
  close(): void {
    this.#ending.abort();
  }

  /** Lets it run, for the next sfld. */
  detach(): void {
    this.close();
    this.#relay?.detach();
    this.#memtap.detach();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.close();
    await this.#relayStarting;
    await this.#relay?.[Symbol.asyncDispose]();
    await this.#memtap[Symbol.asyncDispose]();
  }

  #lose(reason: string): void {
    if (this.#ending.signal.aborted || this.#sourceLost !== null) return;
    this.#sourceLost = `the parent's memory can no longer be fetched: ${reason}`;
    this.#options.log.error({ reason }, 'source lost; its clones end');
    this.#options.onSourceLost();
  }
}

function pathsIn(directory: string): { controlPath: string; mountPath: string } {
  return { controlPath: join(directory, 'ctl'), mountPath: join(directory, 'm') };
}
