// Pause, freeze, go on: the instant of a fork (DESIGN step 3).
//
//   running ─stop─▶ paused ─disk overlay─▶ ─fork(2) beside saving the device state─▶ frozen copy exists ─cont─▶ running
//
// Invariants: the VM runs again whatever fails; disk, device state and memory belong to the same instant; after a failure no
// frozen copy is left (its lease is closed by whoever owns the memserver).

import { readFile, rm } from 'node:fs/promises';
import { SnowflockError } from '@snowflock/protocol';
import { createOverlay } from './disk.ts';
import { diskNode } from './qemu-args.ts';
import type { FrozenProcess } from './fork-control.ts';
import type { QemuProcess } from './qemu-process.ts';
import type { QmpCommand } from './qmp.ts';

export interface FreezeTimings {
  /** From sending `stop` to the answer to `cont`: how long the VM did not run, at most. */
  readonly pauseMs: number;
  /** Stopping the CPUs, draining I/O, switching the disk. */
  readonly stopMs: number;
  /** Forking the process and, beside it, saving the device state. */
  readonly forkMs: number;
  readonly contMs: number;
}

export interface FrozenVm {
  readonly process: FrozenProcess;
  readonly deviceState: Buffer;
  readonly timings: FreezeTimings;
  /** The qcow2 that was written to until this instant and never will be again; null without a disk. */
  readonly disk: { readonly path: string } | null;
}

/** The disk of a master VM: a chain of overlays, one more at each fork. */
export class DiskChain {
  readonly #overlays: string[];
  readonly #directory: string;
  #prepared: { generation: number; path: string } | null = null;
  #preparing: Promise<void> | null = null;

  constructor(options: { directory: string; overlay: string }) {
    this.#directory = options.directory;
    this.#overlays = [options.overlay];
  }

  get current(): string {
    const path = this.#overlays.at(-1);
    if (path === undefined) throw new SnowflockError('internal', 'a disk chain is never empty');
    return path;
  }

  /** Creates the next overlay and opens it in QEMU, so that the pause only has to switch to it. Once for all who ask. */
  async prepare(vm: QemuProcess): Promise<void> {
    if (this.#prepared) return;
    this.#preparing ??= this.#openNext(vm).finally(() => (this.#preparing = null));
    await this.#preparing;
  }

  switchCommand(): QmpCommand {
    if (!this.#prepared) throw new SnowflockError('internal', 'the next overlay is not prepared');
    const { generation } = this.#prepared;
    return {
      execute: 'blockdev-snapshot',
      arguments: { node: diskNode(generation - 1), overlay: diskNode(generation) },
    };
  }

  /** The switch happened: returns the file that is now frozen. */
  switched(): { path: string } {
    if (!this.#prepared) throw new SnowflockError('internal', 'the next overlay is not prepared');
    const frozen = this.current;
    this.#overlays.push(this.#prepared.path);
    this.#prepared = null;
    return { path: frozen };
  }

  async #openNext(vm: QemuProcess): Promise<void> {
    const generation = this.#overlays.length;
    const path = `${this.#directory}/disk-${generation}.qcow2`;
    await createOverlay({ path, backing: this.current, backingFormat: 'qcow2' });
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
    this.#prepared = { generation, path };
  }
}

export async function freezeVm(
  vm: QemuProcess,
  options: {
    leasePath: string;
    disk: DiskChain | null;
    /** Runs when the frozen copy exists and the VM is still paused: what is sent to the guest here reaches only this VM. */
    beforeContinue?: () => void;
  },
): Promise<FrozenVm> {
  const stateFile = vm.spec.paths.deviceState;
  await options.disk?.prepare(vm);
  await rm(stateFile, { force: true });
  const stop: QmpCommand[] = [{ execute: 'stop' }];
  if (options.disk) stop.push(options.disk.switchCommand());
  const begin = performance.now();
  let process: FrozenProcess;
  let disk: { path: string } | null = null;
  let stoppedAt: number;
  let forkedAt: number;
  try {
    // All three are with QEMU at once and run in order. Once it has stopped nothing writes to guest memory any more, so the
    // fork, in a thread of its own, need not wait for the device state.
    const stopped = vm.qmp.executeAll(stop);
    const saved = vm.qmp.execute({
      execute: 'xen-save-devices-state',
      arguments: { filename: stateFile, live: false },
    });
    saved.catch(() => undefined); // awaited below, unless the stop failed before it
    await stopped;
    stoppedAt = performance.now();
    disk = options.disk?.switched() ?? null;
    [process] = await Promise.all([vm.forkControl.fork(options.leasePath), saved]);
    forkedAt = performance.now();
    options.beforeContinue?.();
  } catch (error) {
    await vm.qmp.execute({ execute: 'cont' });
    throw error;
  }
  await vm.qmp.execute({ execute: 'cont' });
  const end = performance.now();
  const deviceState = await readFile(stateFile);
  return {
    process,
    deviceState,
    disk,
    timings: {
      pauseMs: end - begin,
      stopMs: stoppedAt - begin,
      forkMs: forkedAt - stoppedAt,
      contMs: end - forkedAt,
    },
  };
}
