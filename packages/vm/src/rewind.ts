// A clone back to its fork point, in the QEMU that it has.
//
//   running ─stop─▶ paused ─devices reset─▶ channel made anew, RAM discarded, disk exchanged ─device state loaded─▶ as after the
//   first load, paused
//
// QEMU has nothing for this, but all parts of it: a private mapping that is discarded is what its file holds; the drive of a device
// can be set while it exists; and a device state can be loaded again once the fork shim has registered an incoming migration and made
// QEMU forget how far its processors' clocks had come.
//
// Invariant: after a failure the VM does not run again; it is in no state that it has ever been in, and its owner ends it.

import { setTimeout as sleep } from 'node:timers/promises';
import { SnowflockError } from '@snowflock/protocol';
import { z } from 'zod';
import { AgentLink } from './agent-link.ts';
import { within } from './deadline.ts';
import type { BlankOverlay, DiskChain } from './disk-chain.ts';
import { AGENT_CHARDEV } from './qemu-args.ts';
import type { QemuProcess } from './qemu-process.ts';
import type { QmpCommand } from './qmp.ts';

const RESET_TIMEOUT_MS = 5_000;
const CHANNEL_TIMEOUT_MS = 5_000;
const CHANNEL_POLL_MS = 1;

const Chardevs = z.array(z.object({ label: z.string(), filename: z.string() }));

/** Answers its channel from then on; `link`, the one until then, is closed. */
export async function rewindVm(
  vm: QemuProcess,
  options: {
    /** A file with the state that it was first given. */
    readonly deviceState: string;
    readonly disk: { readonly chain: DiskChain; readonly blank: BlankOverlay } | null;
    readonly link: AgentLink;
  },
): Promise<AgentLink> {
  const { qmp, forkControl } = vm;
  const { disk } = options;
  await disk?.chain.prepareToStartOver(vm, disk.blank);
  const wasReset = devicesReset(vm);
  // VMs are started so that a guest that reboots ends.
  await qmp.executeAll([{ execute: 'stop' }, onReboot('reset'), { execute: 'system_reset' }]);
  const exchange: QmpCommand[] = disk ? [await disk.chain.startOverCommand(vm)] : [];
  await within(wasReset, RESET_TIMEOUT_MS, `the reset of the devices of VM ${vm.name}`);
  const [link] = await Promise.all([
    connectAnew(vm, options.link),
    forkControl.rewind(),
    qmp.executeAll([...exchange, onReboot('shutdown')]),
  ]);
  try {
    await qmp.execute({
      execute: 'xen-load-devices-state',
      arguments: { filename: options.deviceState },
    });
    await disk?.chain.startedOver(vm);
    return link;
  } catch (error) {
    link.close();
    throw error;
  }
}

function onReboot(reboot: 'reset' | 'shutdown'): QmpCommand {
  return { execute: 'set-action', arguments: { reboot } };
}

/** QEMU does it after it has answered. */
function devicesReset({ qmp }: QemuProcess): Promise<void> {
  return new Promise((resolve) => {
    const onEvent = (name: string): void => {
      if (name !== 'RESET') return;
      qmp.off('event', onEvent);
      resolve();
    };
    qmp.on('event', onEvent);
  });
}

/**
 * Nothing was on the channel at the fork point, in either direction, so what is on it now goes with its connection. QEMU has to have
 * seen the new one before it loads the device state, or it tells the guest that its host was away.
 */
async function connectAnew(vm: QemuProcess, old: AgentLink): Promise<AgentLink> {
  old.close();
  await channelIs(vm, 'free');
  const link = await AgentLink.connect(vm.paths.agent, { timeoutMs: CHANNEL_TIMEOUT_MS, gone: vm.ended });
  try {
    await channelIs(vm, 'connected');
    return link;
  } catch (error) {
    link.close();
    throw error;
  }
}

async function channelIs({ qmp, name }: QemuProcess, wanted: 'free' | 'connected'): Promise<void> {
  const end = performance.now() + CHANNEL_TIMEOUT_MS;
  while (performance.now() < end) {
    const all = Chardevs.parse(await qmp.execute({ execute: 'query-chardev' }));
    const { filename = '' } = all.find(({ label }) => label === AGENT_CHARDEV) ?? {};
    if (filename.startsWith('disconnected:') === (wanted === 'free')) return;
    await sleep(CHANNEL_POLL_MS);
  }
  throw new SnowflockError(
    'timeout',
    `the guest channel of VM ${name} was not ${wanted} within ${CHANNEL_TIMEOUT_MS} ms`,
  );
}
