// How the pages of a fork get to its hosts (docs/distribution.md). As configured; with 'auto' by what multicast was found to reach, and by
// how many hosts there are.
//
//   hosts up: other than before --a second of quiet--> try: one sends, all listen --> heard by ... --> next time that hosts change
//
// A fork that is prepared while nothing is known yet goes as if there were no multicast.

import { randomBytes } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Log } from '../log.ts';
import type { HostAddress, Hosts } from './hosts.ts';

export type PageWay = 'unicast' | 'relay' | 'multicast';

/** Hosts come one after another. */
const SETTLE_MS = 1000;
const LISTEN_MS = 1000;
/** To fewer hosts, passing pages on saves the parent's link little, and costs each fault a round trip. */
const RELAY_HOSTS_MIN = 4;
/** For one receiver there is no multicast. */
const MULTICAST_HOSTS_MIN = 2;

export interface PageWaysOptions {
  readonly mode: PageWay | 'auto';
  /** Names of the hosts' interfaces for multicast, by host. */
  readonly multicastHosts: ReadonlyMap<string, string>;
  readonly hosts: Pick<Hosts, 'tryMulticast'>;
  readonly addressOf: (host: string) => HostAddress;
  readonly log: Log;
  readonly closing: AbortSignal;
}

export class PageWays {
  readonly #options: PageWaysOptions;
  /** That were up when multicast was last tried, or that the try under way is about. */
  #tried: readonly string[] = [];
  /** Length of the longest packet that each of them heard; 0: none. */
  #heard: ReadonlyMap<string, number> = new Map();
  #trying = false;

  constructor(options: PageWaysOptions) {
    this.#options = options;
  }

  /** By host, as far as it was tried: the longest packet that multicast brought, in bytes; 0: none. */
  get heard(): ReadonlyMap<string, number> {
    return this.#heard;
  }

  /** Undefined: pages do not come in by multicast there. */
  multicastHostOf(host: string): string | undefined {
    return this.#options.multicastHosts.get(host);
  }

  of({ parentHost, targets }: { readonly parentHost: string; readonly targets: readonly string[] }): PageWay {
    const { mode } = this.#options;
    if (mode !== 'auto') return mode;
    const remote = new Set(targets.filter((host) => host !== parentHost));
    const hear = [parentHost, ...remote].every((host) => (this.#heard.get(host) ?? 0) > 0);
    if (hear && remote.size >= MULTICAST_HOSTS_MIN) return 'multicast';
    return remote.size >= RELAY_HOSTS_MIN ? 'relay' : 'unicast';
  }

  /** The hosts that are up now. */
  noteUp(hosts: readonly string[]): void {
    if (this.#options.mode !== 'auto' || this.#trying) return;
    const up = [...hosts].sort();
    if (up.join(' ') === this.#tried.join(' ')) return;
    this.#trying = true;
    void this.#try(up);
  }

  async #try(up: readonly string[]): Promise<void> {
    const { log, closing } = this.#options;
    try {
      await sleep(SETTLE_MS, undefined, { signal: closing });
      this.#tried = up;
      this.#heard = await this.#listen(up);
      const heardBy = Object.fromEntries([...this.#heard].filter(([, bytes]) => bytes > 0));
      const deaf = up.filter((host) => (this.#heard.get(host) ?? 0) === 0);
      log.info(
        { from: up[0], heardBy, deaf },
        deaf.length === 0
          ? 'multicast reaches all hosts that are up: forks use it'
          : 'multicast does not reach all hosts that are up: forks to those use relays, or unicast where they are few',
      );
    } catch (error) {
      if (!closing.aborted) log.error({ error }, 'multicast could not be tried; forks do without');
    } finally {
      this.#trying = false;
    }
  }

  /** The first one sends. Who does not answer has heard nothing. */
  async #listen(up: readonly string[]): Promise<Map<string, number>> {
    const { hosts, addressOf, log, closing } = this.#options;
    const keyHex = randomBytes(32).toString('hex');
    const asked = up.map(async (host, index): Promise<[string, number]> => {
      const multicastHost = this.multicastHostOf(host);
      if (multicastHost === undefined) return [host, 0];
      try {
        const body = { keyHex, multicastHost, sends: index === 0, listenMs: LISTEN_MS };
        return [host, (await hosts.tryMulticast(addressOf(host), body, closing)).packetBytes];
      } catch (error) {
        log.warn({ host, error }, 'the host could not try multicast');
        return [host, 0];
      }
    });
    return new Map(await Promise.all(asked));
  }
}
