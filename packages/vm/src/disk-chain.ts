// The disk of a VM: a chain of overlays, one more at each fork. What lies under it is an image, or of a clone the file of its memtap.
//
//   under ◀─ disk-0 ◀─ disk-1 ◀─ … ◀─ disk-N (written to)      disk-N+1 (prepared, empty)
//
// A fork freezes the newest overlay and goes on in the prepared one. Frozen overlays below which nobody reads are merged
// into one, so that a VM that forks a thousand times has no chain of a thousand files.
//
// Invariant: a file that a fork is read from, and what lies below it, is never written to.

import { copyFile, rm } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import { SnowflockError } from '@snowflock/protocol';
import { z } from 'zod';
import { createOverlay } from './disk.ts';
import { diskNode, diskNodeOptions } from './qemu-args.ts';
import type { QemuProcess } from './qemu-process.ts';
import type { QmpCommand } from './qmp.ts';

const JOB = 'shorten';
/** Files worth a job: it costs some ms of the VM's I/O thread. */
const SHORTEN_AT = 8;
const SHORTEN_TIMEOUT_MS = 600_000;
const POLL_MS = 50;

const Jobs = z.array(z.object({ id: z.string(), status: z.string(), error: z.string().optional() }));
const BlockDevices = z.array(
  z.object({
    qdev: z.string().optional(),
    inserted: z.object({ 'node-name': z.string().optional() }).optional(),
  }),
);
const BlockNodes = z.array(z.object({ 'node-name': z.string().optional() }));

/** Where the overlay of a generation lies; 0 is the one that a VM starts with. */
export function overlayPath(directory: string, generation: number): string {
  return `${directory}/disk-${generation}.qcow2`;
}

function generationOf(node: string | undefined): number | null {
  const match = /^disk(\d+)$/.exec(node ?? '');
  return match ? Number(match[1]) : null;
}

/** An overlay of the right size that nothing was written to, to be copied, and what it lies on. */
export interface BlankOverlay {
  readonly path: string;
  readonly backing: string;
  readonly backingFormat: 'raw' | 'qcow2';
}

export interface DiskChainOptions {
  readonly directory: string;
  /** As the guest sees it. */
  readonly sizeBytes: number;
}

export class DiskChain {
  readonly #directory: string;
  readonly #sizeBytes: number;
  /** Generations that there are, oldest first; the last one is written to. */
  #live: number[] = [0];
  /** Frozen generations that a fork is read from. */
  readonly #pinned = new Set<number>();
  /** Whatever is not above it is left as it is: a daemon before this one may have forks that are read from it. */
  #floor = -1;
  #prepared: number | null = null;
  #preparing: Promise<void> | null = null;
  /** Empty, on what lies under all of it: prepared to start over. */
  #fresh: number | null = null;
  #shortening: Promise<void> | null = null;

  /** A new VM's: generation 0 is made already. */
  constructor(options: DiskChainOptions) {
    this.#directory = options.directory;
    this.#sizeBytes = options.sizeBytes;
  }

  /** The chain of a VM that an earlier daemon had, as QEMU has it: whatever a fork that was cut short came to. Null without a disk. */
  static async of(vm: QemuProcess, options: DiskChainOptions): Promise<DiskChain | null> {
    const [devices, nodes] = await vm.qmp.executeAll([
      { execute: 'query-block' },
      { execute: 'query-named-block-nodes', arguments: { flat: true } },
    ]);
    const inUse = BlockDevices.parse(devices).map((device) => generationOf(device.inserted?.['node-name']));
    const current = inUse.find((generation) => generation !== null);
    if (current === undefined || current === null) return null;
    const chain = new DiskChain(options);
    const known = new Set(BlockNodes.parse(nodes).map((node) => generationOf(node['node-name'])));
    chain.#live = Array.from({ length: current + 1 }, (_, each) => each).filter((each) => known.has(each));
    chain.#floor = current;
    if (known.has(current + 1)) chain.#prepared = current + 1;
    await endJob(vm);
    return chain;
  }

  /** Creates the next overlay and opens it in QEMU, so that the pause only has to switch to it. Once for all who ask. */
  async prepare(vm: QemuProcess): Promise<void> {
    if (this.#prepared !== null) return;
    this.#preparing ??= this.#openNext(vm).finally(() => (this.#preparing = null));
    await this.#preparing;
  }

  switchCommand(): QmpCommand {
    const overlay = diskNode(this.#expectPrepared());
    return { execute: 'blockdev-snapshot', arguments: { node: diskNode(this.#current), overlay } };
  }

  /** The switch happened: returns what is now frozen. Whoever reads it pins it. */
  switched(): { generation: number; path: string } {
    const generation = this.#current;
    this.#live.push(this.#expectPrepared());
    this.#prepared = null;
    return { generation, path: this.#path(generation) };
  }

  pin(generation: number): void {
    this.#pinned.add(generation);
  }

  unpin(generation: number): void {
    this.#pinned.delete(generation);
  }

  /** Makes QEMU open an empty overlay on what lies under the chain; `startOverCommand` has the device use it in place of all of the chain. */
  async prepareToStartOver(vm: QemuProcess, blank: BlankOverlay): Promise<void> {
    await this.settle(vm);
    await this.#preparing;
    const generation = this.#next;
    const path = this.#path(generation);
    await copyFile(blank.path, path);
    await vm.qmp.execute({
      execute: 'blockdev-add',
      arguments: diskNodeOptions({ generation, overlay: path, ...blank }),
    });
    this.#fresh = generation;
  }

  /** While the VM is stopped. */
  async startOverCommand(vm: QemuProcess): Promise<QmpCommand> {
    const [device] = BlockDevices.parse(await vm.qmp.execute({ execute: 'query-block' })).filter(
      ({ inserted }) => generationOf(inserted?.['node-name']) === this.#current,
    );
    if (this.#fresh === null || device?.qdev === undefined)
      throw new SnowflockError('internal', 'the disk is not prepared to start over');
    const value = diskNode(this.#fresh);
    return { execute: 'qom-set', arguments: { path: device.qdev, property: 'drive', value } };
  }

  /** The device uses the empty overlay: the chain is that alone, and its files from before go. */
  async startedOver(vm: QemuProcess): Promise<void> {
    if (this.#fresh === null) throw new SnowflockError('internal', 'the disk was not prepared to start over');
    // The newest first: each is the backing of the one after it until that is gone.
    const old = [...this.#live, ...(this.#prepared === null ? [] : [this.#prepared])].reverse();
    this.#live = [this.#fresh];
    this.#fresh = this.#prepared = null;
    this.#floor = -1;
    this.#pinned.clear();
    await this.#drop(vm, old);
  }

  /**
   * Makes one file of the frozen ones that nobody reads any more, in the background, once there are so many that it is worth it.
   * A fork ends the work early; what is not done is done after a later one.
   */
  async shorten(vm: QemuProcess): Promise<void> {
    if (this.#shortening) return;
    const above = Math.max(this.#floor, ...this.#pinned);
    const unread = this.#live.filter((each) => each > above && each < this.#current);
    const [base, ...others] = unread;
    const top = others.at(-1);
    if (base === undefined || top === undefined || unread.length < SHORTEN_AT) return;
    await vm.qmp.execute({
      execute: 'block-commit',
      arguments: {
        'job-id': JOB,
        device: diskNode(this.#current),
        'top-node': diskNode(top),
        'base-node': diskNode(base),
        'auto-dismiss': false,
      },
    });
    this.#shortening = this.#finishShortening(vm, others)
      .catch(() => undefined) // the VM has ended, or the disk is full: the files stay as they are, and are right
      .finally(() => (this.#shortening = null));
  }

  /** Ends a shortening that is under way: the chain must not change while the VM is frozen. */
  async settle(vm: QemuProcess): Promise<void> {
    if (!this.#shortening) return;
    await cancelJob(vm);
    await this.#shortening;
  }

  /** For tests and for whoever waits for no fork. */
  async shortened(): Promise<void> {
    await this.#shortening;
  }

  async #finishShortening(vm: QemuProcess, merged: readonly number[]): Promise<void> {
    if (!(await waitForJob(vm))) return;
    // The newest first: each is the backing of the one after it until that is gone.
    for (const generation of [...merged].reverse()) {
      this.#live = this.#live.filter((each) => each !== generation);
      await this.#drop(vm, [generation]);
    }
  }

  async #drop(vm: QemuProcess, generations: readonly number[]): Promise<void> {
    for (const generation of generations) {
      await vm.qmp.execute({
        execute: 'blockdev-del',
        arguments: { 'node-name': diskNode(generation) },
      });
      await rm(this.#path(generation), { force: true });
    }
  }

  /** Of the overlay that is made next, whatever for. */
  get #next(): number {
    return (this.#prepared ?? this.#current) + 1;
  }

  get #current(): number {
    const generation = this.#live.at(-1);
    if (generation === undefined) throw new SnowflockError('internal', 'a disk chain is never empty');
    return generation;
  }

  #expectPrepared(): number {
    if (this.#prepared === null) throw new SnowflockError('internal', 'the next overlay is not prepared');
    return this.#prepared;
  }

  #path(generation: number): string {
    return overlayPath(this.#directory, generation);
  }

  async #openNext(vm: QemuProcess): Promise<void> {
    const generation = this.#current + 1;
    const path = this.#path(generation);
    const backing = this.#path(this.#current);
    // Of a known size, so that nothing under it is looked at, which may be far away.
    await createOverlay({ path, backing, backingFormat: 'qcow2', sizeBytes: this.#sizeBytes });
    await vm.qmp.execute({
      execute: 'blockdev-add',
      arguments: {
        driver: 'qcow2',
        'node-name': diskNode(generation),
        cache: { direct: false, 'no-flush': true },
        discard: 'unmap',
        file: { driver: 'file', filename: path, cache: { direct: false, 'no-flush': true } },
        backing: null,
      },
    });
    this.#prepared = generation;
  }
}

async function cancelJob(vm: QemuProcess): Promise<void> {
  // refused: it is over just now
  await vm.qmp.execute({ execute: 'job-cancel', arguments: { id: JOB } }).catch(() => undefined);
}

/** Whether it came to its end; false also when there is none. */
async function waitForJob(vm: QemuProcess): Promise<boolean> {
  const end = performance.now() + SHORTEN_TIMEOUT_MS;
  for (;;) {
    const jobs = Jobs.parse(await vm.qmp.execute({ execute: 'query-jobs' }));
    const job = jobs.find(({ id }) => id === JOB);
    if (!job) return false;
    if (job.status === 'concluded') {
      await vm.qmp.execute({ execute: 'job-dismiss', arguments: { id: JOB } });
      return job.error === undefined;
    }
    if (performance.now() > end) await cancelJob(vm);
    await sleep(POLL_MS);
  }
}

/** Ends what a daemon before this one began. */
async function endJob(vm: QemuProcess): Promise<void> {
  await cancelJob(vm);
  await waitForJob(vm);
}
