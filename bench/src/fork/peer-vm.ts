// A VM of the peers: QEMU with the same guest, but without daemons.

import { mkdtemp, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { ImageManifest } from '@snowflock/image';
import { GuestFrameType, type GuestIdentity } from '@snowflock/protocol';
import {
  AgentLink,
  QemuProcess,
  vmPaths,
  within,
  type Accel,
  type VmOrigin,
  type VmRam,
} from '@snowflock/vm';

const BOOT_TIMEOUT_MS = 120_000;
const SAVE_TIMEOUT_MS = 300_000;
const FILL_TIMEOUT_MS = 300_000;

export interface PeerGuest {
  readonly accel: Accel;
  readonly image: ImageManifest;
  readonly forkShim: string;
  readonly memoryMib: number;
  readonly touchedMib: number;
  /** On a file system in memory, with room for the VM's RAM twice. */
  readonly scratch: string;
}

const IDENTITY: GuestIdentity = {
  clusterid: 0,
  vmid: 0,
  nclones: 0,
  hostname: 'bench',
  ip: '10.0.0.1',
  prefix: 16,
  mac: '52:00:00:00:00:00',
  mtu: 1450,
  timeNs: 0n,
  entropy: Buffer.alloc(64, 7),
};

export interface PeerVm extends AsyncDisposable {
  readonly qemu: QemuProcess;
  readonly link: AgentLink;
}

export const ANONYMOUS: VmRam = { kind: 'anonymous' };

export async function start(
  guest: PeerGuest,
  where: { name: string; directory: string },
  boot: { origin: VmOrigin; ram: VmRam },
): Promise<PeerVm> {
  const { name, directory } = where;
  const qemu = await QemuProcess.start(
    {
      name,
      accel: guest.accel,
      vcpus: 1,
      memoryMib: guest.memoryMib,
      paths: vmPaths(join(directory, name)),
      ...boot,
      disk: null,
      nic: null,
    },
    { forkShim: guest.forkShim },
  );
  const link = await AgentLink.connect(qemu.paths.agent, { timeoutMs: 5000, gone: qemu.ended });
  return { qemu, link, [Symbol.asyncDispose]: async () => void (await qemu.kill()) };
}

export function booting(guest: PeerGuest, ram: VmRam): { origin: VmOrigin; ram: VmRam } {
  const { kernel, initrd, append } = guest.image;
  return { origin: { kind: 'boot', kernel, initrd, append }, ram };
}

/** Resolves when the agent has said hello and taken its identity. */
export async function answered(vm: PeerVm): Promise<void> {
  const identified = vm.link.identified(0, BOOT_TIMEOUT_MS);
  vm.link.on('frame', (frame) => {
    if (frame.type === GuestFrameType.hello)
      vm.link.sendIdentity(0, { ...IDENTITY, timeNs: BigInt(Date.now()) * 1_000_000n });
  });
  await identified;
}

/** Fills memory in the guest, as the fork's guest does; the program stays. */
export async function fill(vm: PeerVm, mib: number): Promise<void> {
  const ready = new Promise<void>((resolve) =>
    vm.link.on('frame', (frame) => {
      if (frame.type === GuestFrameType.execOut && frame.payload.includes('ready')) resolve();
    }),
  );
  vm.link.send({ type: GuestFrameType.execStart, id: 1, payload: `/usr/lib/snowflock/sftouch\0${mib}\0` });
  await within(ready, FILL_TIMEOUT_MS, `filling ${mib} MiB in the guest`);
}

/** One question that the guest's agent answers: is the VM there? */
export async function ping(vm: PeerVm, id: number): Promise<void> {
  await vm.link.hold(id, BOOT_TIMEOUT_MS);
  vm.link.sendIdentity(id, IDENTITY);
  vm.link.release();
}

export async function migrationDone(vm: PeerVm, begin: () => Promise<unknown>): Promise<void> {
  const done = new Promise<void>((resolve, reject) =>
    vm.qemu.qmp.on('event', (name: string, data: Record<string, unknown>) => {
      if (name === 'MIGRATION' && data['status'] === 'completed') resolve();
      if (name === 'MIGRATION' && data['status'] === 'failed')
        reject(new Error('the migration stream failed'));
    }),
  );
  await begin();
  await within(done, SAVE_TIMEOUT_MS, 'saving or loading a VM');
}

/** QEMU reports a migration as completed a moment before it lets the VM go on. */
export async function goOn(vm: PeerVm): Promise<void> {
  const deadline = performance.now() + SAVE_TIMEOUT_MS;
  for (;;) {
    try {
      await vm.qemu.qmp.execute({ execute: 'cont' });
      return;
    } catch (error) {
      if (!String(error).includes('not finalized') || performance.now() > deadline) throw error;
      await sleep(1);
    }
  }
}

export function capabilities(names: readonly string[]): {
  execute: string;
  arguments: Record<string, unknown>;
} {
  return {
    execute: 'migrate-set-capabilities',
    arguments: { capabilities: ['events', ...names].map((capability) => ({ capability, state: true })) },
  };
}

export async function inScratch<T>(guest: PeerGuest, work: (directory: string) => Promise<T>): Promise<T> {
  const directory = await mkdtemp(join(guest.scratch, 'sf-peer-'));
  try {
    return await work(directory);
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
}
