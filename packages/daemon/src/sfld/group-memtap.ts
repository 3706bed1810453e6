// The memtap of a clone group, which serves all of its clones, and where it fetches from.
//
//   started ──connectAhead──▶ linked ──attach──▶ serving ──▶ source lost        and from each of them ──▶ detached or gone
//
// Invariant: a source is lost once, and for good: whoever asks afterwards hears why.

import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import {
  PageSourceReply,
  SnowflockError,
  toSnowflockError,
  type Descriptor,
  type PrepareClones,
} from '@snowflock/protocol';
import { cleanupMount, MemtapProcess, type MemtapStats } from '@snowflock/replication';
import { isRunning, markProcess, type ProcessMark } from '@snowflock/vm';
import type { Log } from '../log.ts';
import type { HostContext } from './context.ts';
import { multicastAddressOf } from './multicast-address.ts';

/** The parent's host may hear of the ticket later than this one, and then starts its memserver. */
const SOURCE_TIMEOUT_MS = 15_000;
const SOURCE_RETRY_MS = 50;

export interface GroupMemtapOptions {
  readonly context: HostContext;
  readonly request: PrepareClones;
  /** Of the group's files. */
  readonly directory: string;
  readonly log: Log;
  /** No page can be fetched any more; `sourceLost` says why. */
  readonly onSourceLost: () => void;
}

export class GroupMemtap implements AsyncDisposable {
  readonly #options: GroupMemtapOptions;
  readonly #memtap: MemtapProcess;
  readonly #multicastAddress: Promise<string | undefined>;
  readonly #ending = new AbortController();
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
    const { clusterid, ticket, shape, diskBytes } = request;
    const memtap = await MemtapProcess.start({
      ...pathsIn(directory),
      ramBytes: shape.memoryMib * 2 ** 20,
      diskBytes,
      logPath: join(context.runDir, 'memtap.log'),
      subject: { clusterid, ticket },
    });
    return new GroupMemtap(options, memtap);
  }

  /** Takes over what the last sfld had. Throws 'source-lost' if it has ended. */
  static async adopt(options: GroupMemtapOptions, mark: ProcessMark | null): Promise<GroupMemtap> {
    if (!mark || !isRunning(mark))
      throw new SnowflockError('source-lost', 'its memtap ended while no sfld ran here');
    return new GroupMemtap(
      options,
      await MemtapProcess.attachTo({ pid: mark.pid, ...pathsIn(options.directory) }),
    );
  }

  /** What a memtap that did not end in order has left mounted in `directory`. */
  static async cleanUp(directory: string): Promise<void> {
    await cleanupMount(pathsIn(directory).mountPath);
  }

  /** Where the disk of the fork is, or will be, in `directory`. */
  static diskPath(directory: string): string {
    return join(pathsIn(directory).mountPath, 'disk');
  }

  get pid(): number {
    return this.#memtap.pid;
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
    const { context, request, log } = this.#options;
    const { host, address, sfldPort: port } = request.parent;
    const signal = AbortSignal.any([this.#ending.signal, AbortSignal.timeout(SOURCE_TIMEOUT_MS)]);
    for (;;) {
      try {
        const source = await context.peers.client({ host, address, port }).request({
          method: 'GET',
          path: `/v1/sources/${request.ticket}/pages`,
          reply: PageSourceReply,
          timeoutMs: SOURCE_TIMEOUT_MS,
          signal,
        });
        await this.#memtap.connect({
          sources: [{ address: source.address, port: source.port }],
          key: Buffer.from(source.keyHex, 'hex'),
          multicastAddress: await this.#multicastAddress,
          prefetch: source.prefetch,
        });
        return;
      } catch (error) {
        if (toSnowflockError(error).code !== 'no-such-ticket' || signal.aborted) {
          log.debug({ err: error }, 'not connected ahead of the fork');
          return;
        }
      }
      await sleep(SOURCE_RETRY_MS, undefined, { signal }).catch(() => undefined);
    }
  }

  /**
   * Of a fork that has been made: what was read before it waits no longer. What was fetched ahead of a VM that has moved while its device
   * state is loaded would stand in the way of what the load needs, and prolong the VM's pause: `prefetch` follows when it runs.
   */
  async attach({ header, presence }: Descriptor): Promise<void> {
    const { source } = header;
    const prefetch = this.#options.request.moved ? [] : header.prefetch;
    await this.#memtap.attach({
      sources: [{ address: source.address, port: source.port }],
      key: Buffer.from(source.keyHex, 'hex'),
      multicastAddress: await this.#multicastAddress,
      presence,
      prefetch,
    });
  }

  /** What the VM needs next, most likely. Never rejects: what is not fetched now is fetched when it is needed. */
  async prefetch(pages: readonly number[]): Promise<void> {
    try {
      await this.#memtap.prefetch(pages);
    } catch (error) {
      this.#options.log.debug({ err: error }, 'no pages were fetched ahead');
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
    this.#memtap.detach();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.close();
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
