// Pause, freeze, go on: the instant of a fork (DESIGN step 3).
//
//   running ─stop─▶ paused ─disk overlay─▶ ─fork(2) beside saving the device state─▶ frozen copy exists ─cont─▶ running
//
// Invariants: the VM runs again whatever fails (or, when it is to leave its host, is left paused on purpose); disk, device state and memory belong to the same instant; after a failure no
// frozen copy is left (its lease is closed by whoever owns the memserver).

import { readFile, rm } from 'node:fs/promises';
import type { DiskChain } from './disk-chain.ts';
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
  readonly disk: { readonly generation: number; readonly path: string } | null;
}

export interface FreezeOptions {
  readonly leasePath: string;
  readonly disk: DiskChain | null;
}

export async function freezeVm(
  vm: QemuProcess,
  options: FreezeOptions & {
    /** Runs when the frozen copy exists and the VM is still paused: what is sent to the guest here reaches only this VM. */
    readonly beforeContinue?: () => void;
  },
): Promise<FrozenVm> {
  const { begin, forkedAt, ...frozen } = await stopAndFreeze(vm, options);
  try {
    options.beforeContinue?.();
  } finally {
    await vm.qmp.execute({ execute: 'cont' });
  }
  const end = performance.now();
  const deviceState = await readFile(vm.paths.deviceState);
  const timings = { ...frozen.timings, pauseMs: end - begin, contMs: end - forkedAt };
  return { ...frozen, deviceState, timings };
}

/** Freezes it, and it stays paused: whoever asked has to let it go on. If it cannot be frozen it goes on at once. */
export async function freezeAndStay(
  vm: QemuProcess,
  options: FreezeOptions & {
    /** Called as soon as the frozen copy exists, while the device state is still being saved. */
    readonly onFrozen: (frozen: Pick<FrozenVm, 'process' | 'disk'>) => void;
  },
): Promise<Omit<FrozenVm, 'timings'> & { readonly stoppedAtMs: number }> {
  const { process, disk, begin } = await stopAndFreeze(vm, options);
  try {
    return { process, disk, deviceState: await readFile(vm.paths.deviceState), stoppedAtMs: begin };
  } catch (error) {
    await vm.qmp.execute({ execute: 'cont' });
    throw error;
  }
}

async function stopAndFreeze(
  vm: QemuProcess,
  options: FreezeOptions & { readonly onFrozen?: (frozen: Pick<FrozenVm, 'process' | 'disk'>) => void },
) {
  const stateFile = vm.paths.deviceState;
  await options.disk?.settle(vm);
  await options.disk?.prepare(vm);
  await rm(stateFile, { force: true });
  const stop: QmpCommand[] = [{ execute: 'stop' }];
  if (options.disk) stop.push(options.disk.switchCommand());
  const begin = performance.now();
  let process: FrozenProcess;
  let disk: FrozenVm['disk'] = null;
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
    process = await vm.forkControl.fork(options.leasePath);
    options.onFrozen?.({ process, disk });
    await saved;
    forkedAt = performance.now();
  } catch (error) {
    await vm.qmp.execute({ execute: 'cont' });
    throw error;
  }
  const timings = { stopMs: stoppedAt - begin, forkMs: forkedAt - stoppedAt };
  return { process, disk, begin, forkedAt, timings };
}
