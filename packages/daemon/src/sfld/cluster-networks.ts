// The private networks of the clusters that have a VM on this host: opened by the first, closed after the last.
//
// Invariant: of one cluster, nothing is opened while it is still being closed: the devices have the same names.

import { ClusterNetwork, type ClusterNetworkOptions } from '@snowflock/network';
import type { Log } from '../log.ts';

interface Entry {
  users: number;
  readonly opened: Promise<ClusterNetwork>;
}

export class ClusterNetworks {
  readonly #localAddress: string;
  readonly #log: Log;
  readonly #open: (options: ClusterNetworkOptions) => Promise<ClusterNetwork>;
  readonly #entries = new Map<number, Entry>();
  readonly #closing = new Map<number, Promise<void>>();
  #peers: readonly string[] = [];

  /** `open`: for tests. */
  constructor(options: {
    readonly localAddress: string;
    readonly log: Log;
    readonly open?: (options: ClusterNetworkOptions) => Promise<ClusterNetwork>;
  }) {
    this.#localAddress = options.localAddress;
    this.#log = options.log;
    this.#open = options.open ?? ((network) => ClusterNetwork.open(network));
  }

  /** Pair with `release`. */
  async acquire(clusterid: number): Promise<ClusterNetwork> {
    let entry = this.#entries.get(clusterid);
    if (!entry) {
      entry = { users: 0, opened: this.#openAfterClose(clusterid) };
      this.#entries.set(clusterid, entry);
    }
    entry.users += 1;
    try {
      return await entry.opened;
    } catch (error) {
      await this.release(clusterid);
      throw error;
    }
  }

  async release(clusterid: number): Promise<void> {
    const entry = this.#entries.get(clusterid);
    if (!entry || --entry.users > 0) return;
    this.#entries.delete(clusterid);
    const closed = this.#close(entry);
    this.#closing.set(clusterid, closed);
    try {
      await closed;
    } finally {
      if (this.#closing.get(clusterid) === closed) this.#closing.delete(clusterid);
    }
  }

  /** The other hosts of the system, as sfmd told them. */
  async setPeers(addresses: readonly string[]): Promise<void> {
    const others = addresses.filter((address) => address !== this.#localAddress);
    if (others.join() === this.#peers.join()) return;
    this.#peers = others;
    for (const [clusterid, entry] of this.#entries) {
      try {
        await (await entry.opened).setPeers(others);
      } catch (error) {
        this.#log.warn(
          { clusterid, err: error },
          'the cluster network could not take up the new list of hosts',
        );
      }
    }
  }

  async #openAfterClose(clusterid: number): Promise<ClusterNetwork> {
    await Promise.allSettled([this.#closing.get(clusterid)]);
    return this.#open({ clusterid, localAddress: this.#localAddress, peers: this.#peers });
  }

  async #close(entry: Entry): Promise<void> {
    const [opened] = await Promise.allSettled([entry.opened]);
    if (opened.status === 'fulfilled') await opened.value.close();
  }
}
