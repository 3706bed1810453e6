// The private networks of the clusters that have a VM on this host: opened by the first, closed after the last. While there is
// any, VXLAN is filtered to the hosts of the system.
//
// Invariants: of one cluster, nothing is opened while it is still being closed: the devices have the same names; a network that
// was acquired is behind the filter.

import { ClusterNetwork, type ClusterNetworkOptions } from '@snowflock/network';
import { SnowflockError, type VmRef } from '@snowflock/protocol';
import type { Log } from '../log.ts';
import type { Routers } from './routers.ts';
import { kernelFilter, VxlanFilter, type FilterTools } from './vxlan-filter.ts';

interface Entry {
  users: number;
  readonly opened: Promise<ClusterNetwork>;
}

export class ClusterNetworks {
  readonly #localAddress: string;
  readonly #log: Log;
  readonly #open: (options: ClusterNetworkOptions) => Promise<ClusterNetwork>;
  readonly #routers: Pick<Routers, 'start' | 'end'>;
  readonly #entries = new Map<number, Entry>();
  readonly #closing = new Map<number, Promise<void>>();
  readonly #filter: VxlanFilter;
  /** Null until sfmd has told. */
  #peers: readonly string[] | null = null;

  /** `open`, `filter`: for tests. */
  constructor(options: {
    readonly localAddress: string;
    readonly log: Log;
    readonly routers: Pick<Routers, 'start' | 'end'>;
    readonly open?: (options: ClusterNetworkOptions) => Promise<ClusterNetwork>;
    readonly filter?: FilterTools;
  }) {
    this.#localAddress = options.localAddress;
    this.#log = options.log;
    this.#routers = options.routers;
    this.#open = options.open ?? ((network) => ClusterNetwork.open(network));
    this.#filter = new VxlanFilter(options.filter ?? kernelFilter(options.localAddress), () =>
      this.#entries.size + this.#closing.size > 0 ? { hosts: this.#peers } : 'none',
    );
  }

  /** Connects a VM with its cluster: its tap goes up, and where the master VM is there is the router. */
  async attach(ref: VmRef): Promise<void> {
    await this.attachTap(ref);
    this.startRouter(ref);
  }

  /** Only the tap: of a VM that is paused, and so waits for nothing but that. */
  async attachTap({ clusterid, vmid }: VmRef): Promise<void> {
    const network = await this.#entries.get(clusterid)?.opened;
    if (!network) throw new SnowflockError('internal', `cluster ${clusterid} has no network on this host`);
    await network.attachTap({ vmid });
  }

  /** Of a VM whose tap is up. Starts a process, in the background. */
  startRouter({ clusterid, vmid }: VmRef): void {
    if (vmid === 0) this.#routers.start(clusterid);
  }

  /** The other way: of a VM that ends, or goes. Idempotent. */
  async detach({ clusterid, vmid }: VmRef): Promise<void> {
    const network = await this.#entries.get(clusterid)?.opened;
    if (vmid === 0) await this.#routers.end(clusterid);
    await network?.removeTap({ vmid });
  }

  /** Pair with `release`. */
  async acquire(clusterid: number): Promise<ClusterNetwork> {
    let entry = this.#entries.get(clusterid);
    if (!entry) {
      entry = { users: 0, opened: this.#openAfterClose(clusterid) };
      this.#entries.set(clusterid, entry);
    }
    entry.users += 1;
    // At the same time: until it is handed out nothing is on its bridge that a stranger's frame could reach.
    const [opened, filtered] = await Promise.allSettled([entry.opened, this.#filter.sync()]);
    if (opened.status === 'fulfilled' && filtered.status === 'fulfilled') return opened.value;
    await this.release(clusterid);
    throw opened.status === 'rejected' ? opened.reason : (filtered as PromiseRejectedResult).reason;
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
      await this.#syncFilter();
    }
  }

  /** The other hosts of the system, as sfmd told them. */
  async setPeers(addresses: readonly string[]): Promise<void> {
    const others = addresses.filter((address) => address !== this.#localAddress);
    const isNews = others.join() !== this.#peers?.join();
    this.#peers = others;
    await this.#syncFilter(); // also the change that failed the last time
    if (!isNews) return;
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

  async #syncFilter(): Promise<void> {
    try {
      await this.#filter.sync();
    } catch (error) {
      this.#log.warn({ err: error }, 'the filter of VXLAN could not be changed; it is as it was');
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
