// Loading a device state into an empty, pre-started VM (DESIGN step 6).
// `-incoming defer` + migrate-incoming; QEMU listens on the incoming socket from then on and reads when somebody connects.

import type { Socket } from 'node:net';
import type { QemuProcess } from './qemu-process.ts';
import { connectUnix } from './unix-socket.ts';
import { SnowflockError } from '@snowflock/protocol';
import { within } from './deadline.ts';

const LOAD_TIMEOUT_MS = 20_000;

/** Makes QEMU listen for its device state; part of pre-starting. */
export async function expectDeviceState(vm: QemuProcess): Promise<void> {
  await vm.qmp.executeAll([
    {
      execute: 'migrate-set-capabilities',
      arguments: { capabilities: [{ capability: 'events', state: true }] },
    },
    // No gratuitous ARP for the parent's address: the guest would send it again and again while it takes its own.
    { execute: 'migrate-set-parameters', arguments: { 'announce-rounds': 0 } },
    { execute: 'migrate-incoming', arguments: { uri: `unix:${vm.paths.incoming}` } },
  ]);
}

/** Tells the network of the VM where it now is: frames with its address, from its card, as the VM would send them. */
export async function announcePlace(vm: QemuProcess): Promise<void> {
  const times = { initial: 50, max: 550, rounds: 4, step: 100 };
  await vm.qmp.execute({ execute: 'announce-self', arguments: times });
}

/**
 * Opens the way that the device state will take. QEMU waits at its other end from then on, and ends when it is closed before a whole device
 * state has come.
 */
export async function openDeviceState(vm: QemuProcess): Promise<Socket> {
  const socket = await connectUnix(vm.paths.incoming, {
    timeoutMs: LOAD_TIMEOUT_MS,
    gone: vm.ended,
    what: 'device state',
  });
  socket.on('error', () => socket.destroy());
  return socket;
}

/** Feeds the device state; resolves when it is loaded and the VM could go on. The VM stays paused. `way`: if it is open already. */
export async function loadDeviceState(vm: QemuProcess, deviceState: Buffer, way?: Socket): Promise<void> {
  const loaded = new Promise<void>((resolve, reject) => {
    const onEvent = (name: string, data: Record<string, unknown>): void => {
      if (name !== 'MIGRATION') return;
      if (data['status'] === 'completed') resolve();
      if (data['status'] === 'failed')
        reject(new SnowflockError('vm-failed', `VM ${vm.name}: QEMU refused the device state`));
    };
    vm.qmp.on('event', onEvent);
    void vm.ended.then((end) => reject(new SnowflockError('vm-failed', end.reason)));
  });
  loaded.catch(() => undefined); // awaited below, unless the VM ends before it can be connected to
  const socket = way ?? (await openDeviceState(vm));
  socket.end(deviceState);
  await within(loaded, LOAD_TIMEOUT_MS, `loading the device state of VM ${vm.name}`);
}

/** Lets a VM go on; resolves when QEMU says that it does, some ms before it answers a command of one whose processors have much to do. */
export async function goOn({ qmp }: QemuProcess): Promise<void> {
  const resumed = Promise.withResolvers<void>();
  const onEvent = (name: string): void => {
    if (name === 'RESUME') resumed.resolve();
  };
  qmp.on('event', onEvent);
  try {
    await Promise.race([qmp.execute({ execute: 'cont' }), resumed.promise]);
  } finally {
    qmp.off('event', onEvent);
  }
}
