// The private networks of the clusters that have a VM on this host: opened by the first, closed after the last.

import { ClusterNetwork } from '@snowflock/network';
import type { Log } from '../log.ts';

interface Entry {
  users: number;
  readonly opened: Promise<ClusterNetwork>;
}

export class ClusterNetworks {
  readonly #localAddress: string;
  readonly #log: Log;
  readonly #entries = new Map<number, Entry>();
  #peers: readonly string[] = [];

  constructor(options: { localAddress: string; log: Log }) {
    this.#localAddress = options.localAddress;
    this.#log = options.log;
  }

  /** Pair with `release`. */
  async acquire(clusterid: number): Promise<ClusterNetwork> {
    let entry = this.#entries.get(clusterid);
    if (!entry) {
      const opened = ClusterNetwork.open({ clusterid, localAddress: this.#localAddress, peers: this.#peers });
      entry = { users: 0, opened };
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
    const [opened] = await Promise.allSettled([entry.opened]);
    if (opened.status === 'fulfilled') await opened.value.close();
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
}
