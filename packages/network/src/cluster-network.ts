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
  lowerLinkCommand,
  checkAddress,
  diffPeers,
  floodPeers,
  openCommands,
  peerCommands,
  removeLinkCommand,
} from './commands.ts';
import { bridgeName, parseLinkName, tapName, vxlanName } from './names.ts';
import { setLink } from './set-link.ts';
import { listLinks, runBatch, runTool, type RunOptions } from './run.ts';
import { guardTapRules, unguardTaps } from './tap-guard.ts';

export interface ClusterNetworkOptions extends RunOptions {
  readonly clusterid: number;
  /** This host's address in the underlay. */
  readonly localAddress: string;
  /** The other hosts' addresses; null: not known yet, adopted devices keep theirs. */
  readonly peers: readonly string[] | null;
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
    diffPeers({ have: new Set(), want: options.peers ?? [], localAddress: options.localAddress });
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
      if (options.peers) await network.setPeers(options.peers, { signal });
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

  /** Makes the tap, on the bridge and down: nothing passes. Answers its name. Replaces one that an earlier VM left. */
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
    const guards = guardTapRules(taps.map(({ vmid }) => ({ clusterid: this.clusterid, vmid })));
    return this.#exclusive(async () => {
      const where = { netns: this.#netns, signal: options.signal };
      const make = async (): Promise<void> => {
        await runTool('nft', ['-f', '-'], { ...where, input: guards });
        await runBatch('ip', commands, where);
      };
      try {
        await make();
      } catch {
        // Most likely one of them was left behind: start over from none. A second failure is the caller's.
        await this.#removeLinks(names);
        try {
          await make();
        } catch (error) {
          await this.#removeLinks(names);
          throw error;
        }
      }
      return names;
    });
  }

  /** Connects a VM: its tap goes up. A clone's caller waits for it, so no process is started for it where that can be. */
  attachTap(options: { readonly vmid: number; readonly signal?: AbortSignal }): Promise<void> {
    const { vmid, signal } = options;
    return this.#exclusive(async () => {
      if (this.#netns === undefined && (await setLink(this.tapName(vmid), 'up'))) return;
      const commands = attachTapCommands({ clusterid: this.clusterid, vmid });
      await runBatch('ip', commands, { netns: this.#netns, signal });
    });
  }

  /** What attachTap did is undone: nothing passes. */
  detachTap(options: { readonly vmid: number }): Promise<void> {
    const name = this.tapName(options.vmid);
    return this.#exclusive(async () => {
      if (this.#netns === undefined && (await setLink(name, 'down'))) return;
      await runBatch('ip', [lowerLinkCommand(name)], { netns: this.#netns });
    });
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

  /** Their guards too: no table is made for taps that have none. */
  #removeLinks(names: readonly string[]): Promise<void> {
    return removeLinks(names, { netns: this.#netns });
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

async function removeLinks(names: readonly string[], options: RunOptions): Promise<void> {
  await runBatch('ip', names.map(removeLinkCommand), { ...options, force: true });
  const taps = names.filter((name) => parseLinkName(name)?.kind === 'tap');
  if (taps.length > 0) await unguardTaps(taps, options);
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
  await removeLinks(names, { netns: options.netns, signal: options.signal });
  return names;
}
