// One cluster's network on one host, applied to the kernel.
//
//   (absent) --open--> open --close--> closed        open adopts devices that an earlier sfld left
//
// Invariants: while open, bridge and VXLAN device exist; #peers is the kernel's flood list. All changes of one
// cluster go through #queue, one at a time. The devices live in the kernel, not in this object: they outlive the
// process, and `sweep` finds them by name.

import {
  addTapCommands,
  attachTapCommands,
  checkAddress,
  diffPeers,
  floodPeers,
  openCommands,
  peerCommands,
  removeLinkCommand,
} from './commands.ts';
import { bridgeName, parseLinkName, tapName, vxlanName } from './names.ts';
import { listLinks, runBatch, runTool, type RunOptions } from './run.ts';

export interface ClusterNetworkOptions extends RunOptions {
  readonly clusterid: number;
  /** This host's address in the underlay. */
  readonly localAddress: string;
  /** The other hosts' addresses. */
  readonly peers: readonly string[];
}

export interface TapOptions {
  readonly vmid: number;
  /** Of the host's end of the tap; never the guest's. */
  readonly mac?: string;
}

export class ClusterNetwork implements AsyncDisposable {
  readonly clusterid: number;
  readonly localAddress: string;
  readonly #netns: string | undefined;
  #peers: ReadonlySet<string>;
  #queue: Promise<unknown> = Promise.resolve();

  private constructor(options: ClusterNetworkOptions, peers: ReadonlySet<string>) {
    this.clusterid = options.clusterid;
    this.localAddress = options.localAddress;
    this.#netns = options.netns;
    this.#peers = peers;
  }

  /** Makes (or adopts) bridge and VXLAN device. On failure nothing that it made is left. */
  static async open(options: ClusterNetworkOptions): Promise<ClusterNetwork> {
    const { clusterid, netns, signal } = options;
    checkAddress('local address', options.localAddress);
    diffPeers({ have: new Set(), want: options.peers, localAddress: options.localAddress });
    const have = new Set(await listLinks({ netns, signal }));
    try {
      await runBatch('ip', openCommands({ clusterid, localAddress: options.localAddress, have }), {
        netns,
        signal,
      });
      const adopted = have.has(vxlanName(clusterid));
      const network = new ClusterNetwork(
        options,
        adopted ? await readPeers(clusterid, { netns, signal }) : new Set(),
      );
      await network.setPeers(options.peers, { signal });
      return network;
    } catch (error) {
      const made = [vxlanName(clusterid), bridgeName(clusterid)].filter((name) => !have.has(name));
      await runBatch('ip', made.map(removeLinkCommand), { netns, force: true });
      throw error;
    }
  }

  get bridge(): string {
    return bridgeName(this.clusterid);
  }

  get peers(): string[] {
    return [...this.#peers];
  }

  tapName(vmid: number): string {
    return tapName({ clusterid: this.clusterid, vmid });
  }

  /** Makes the tap, down and attached to nothing; answers its name. Replaces one that an earlier VM left. */
  async addTap(options: TapOptions & { readonly signal?: AbortSignal }): Promise<string> {
    const [name] = await this.addTaps([options], options);
    return name ?? this.tapName(options.vmid);
  }

  /** Several taps with one process. All or none. */
  addTaps(
    taps: readonly TapOptions[],
    options: { readonly signal?: AbortSignal | undefined } = {},
  ): Promise<string[]> {
    const names = taps.map(({ vmid }) => this.tapName(vmid));
    const commands = taps.flatMap((tap) => addTapCommands({ clusterid: this.clusterid, ...tap }));
    return this.#exclusive(async () => {
      const where = { netns: this.#netns, signal: options.signal };
      try {
        await runBatch('ip', commands, where);
      } catch {
        // Most likely one of them was left behind: start over from none. A second failure is the caller's.
        await this.#removeLinks(names);
        try {
          await runBatch('ip', commands, where);
        } catch (error) {
          await this.#removeLinks(names);
          throw error;
        }
      }
      return names;
    });
  }

  /** Connects a VM: on the bridge, and up. */
  attachTap(options: { readonly vmid: number; readonly signal?: AbortSignal }): Promise<void> {
    return this.attachTaps([options.vmid], options);
  }

  attachTaps(
    vmids: readonly number[],
    options: { readonly signal?: AbortSignal | undefined } = {},
  ): Promise<void> {
    const commands = vmids.flatMap((vmid) => attachTapCommands({ clusterid: this.clusterid, vmid }));
    return this.#exclusive(() => runBatch('ip', commands, { netns: this.#netns, signal: options.signal }));
  }

  /** Idempotent. */
  removeTap(options: { readonly vmid: number }): Promise<void> {
    return this.removeTaps([options.vmid]);
  }

  removeTaps(vmids: readonly number[]): Promise<void> {
    return this.#exclusive(() => this.#removeLinks(vmids.map((vmid) => this.tapName(vmid))));
  }

  /** Makes the flood list exactly these hosts (the own address is left out). */
  setPeers(
    peers: readonly string[],
    options: { readonly signal?: AbortSignal | undefined } = {},
  ): Promise<void> {
    return this.#exclusive(async () => {
      const change = diffPeers({ have: this.#peers, want: peers, localAddress: this.localAddress });
      const where = { netns: this.#netns, signal: options.signal };
      try {
        await runBatch('bridge', peerCommands(this.clusterid, change), where);
        this.#peers = new Set(peers.filter((peer) => peer !== this.localAddress));
      } catch (error) {
        this.#peers = await readPeers(this.clusterid, { netns: this.#netns });
        throw error;
      }
    });
  }

  /** Removes taps, VXLAN device and bridge. Idempotent; also removes taps that this object does not know. */
  close(): Promise<void> {
    return this.#exclusive(async () => {
      await sweep({ netns: this.#netns, only: (link) => link.clusterid === this.clusterid });
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  #removeLinks(names: readonly string[]): Promise<void> {
    return runBatch('ip', names.map(removeLinkCommand), { netns: this.#netns, force: true });
  }

  #exclusive<T>(work: () => Promise<T>): Promise<T> {
    const result = this.#queue.then(work);
    this.#queue = result.then(
      () => undefined,
      () => undefined, // reported to the caller of `work`; the queue goes on
    );
    return result;
  }
}

async function readPeers(clusterid: number, options: RunOptions): Promise<Set<string>> {
  const text = await runTool('bridge', ['-j', 'fdb', 'show', 'dev', vxlanName(clusterid)], options);
  return floodPeers(JSON.parse(text.trim() || '[]'));
}

export interface SweepOptions extends RunOptions {
  /** Which devices go; all of ours when absent. A restarted sfld keeps those of the VMs that still run. */
  readonly only?: (link: {
    readonly name: string;
    readonly clusterid: number;
    readonly vmid: number | null;
  }) => boolean;
}

/** Removes what earlier processes left, found by name; answers the names. Safe at any time, idempotent. */
export async function sweep(options: SweepOptions = {}): Promise<string[]> {
  const names = (await listLinks(options)).filter((name) => {
    const link = parseLinkName(name);
    if (!link) return false;
    const vmid = link.kind === 'tap' ? link.vmid : null;
    return options.only?.({ name, clusterid: link.clusterid, vmid }) ?? true;
  });
  await runBatch('ip', names.map(removeLinkCommand), {
    netns: options.netns,
    signal: options.signal,
    force: true,
  });
  return names;
}
