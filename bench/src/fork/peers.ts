// What one did before, on the same guest: cold boot; suspend to a file, copy it, resume; QEMU's template clone
// (x-ignore-shared). Each is timed until the guest's agent answers. Where a peer can have its processes pre-started as ours
// are, it has.

import { copyFile, mkdtemp, rm } from 'node:fs/promises';
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

interface Vm extends AsyncDisposable {
  readonly qemu: QemuProcess;
  readonly link: AgentLink;
}

const ANONYMOUS: VmRam = { kind: 'anonymous' };

async function start(
  guest: PeerGuest,
  where: { name: string; directory: string },
  boot: { origin: VmOrigin; ram: VmRam },
): Promise<Vm> {
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

function booting(guest: PeerGuest, ram: VmRam): { origin: VmOrigin; ram: VmRam } {
  const { kernel, initrd, append } = guest.image;
  return { origin: { kind: 'boot', kernel, initrd, append }, ram };
}

/** Resolves when the agent has said hello and taken its identity. */
async function answered(vm: Vm): Promise<void> {
  const identified = vm.link.identified(0, BOOT_TIMEOUT_MS);
  vm.link.on('frame', (frame) => {
    if (frame.type === GuestFrameType.hello)
      vm.link.sendIdentity(0, { ...IDENTITY, timeNs: BigInt(Date.now()) * 1_000_000n });
  });
  await identified;
}

/** Fills memory in the guest, as the fork's guest does; the program stays. */
async function fill(vm: Vm, mib: number): Promise<void> {
  const ready = new Promise<void>((resolve) =>
    vm.link.on('frame', (frame) => {
      if (frame.type === GuestFrameType.execOut && frame.payload.includes('ready')) resolve();
    }),
  );
  vm.link.send({ type: GuestFrameType.execStart, id: 1, payload: `/usr/lib/snowflock/sftouch\0${mib}\0` });
  await within(ready, FILL_TIMEOUT_MS, `filling ${mib} MiB in the guest`);
}

/** One question that the guest's agent answers: is the VM there? */
async function ping(vm: Vm, id: number): Promise<void> {
  await vm.link.hold(id, BOOT_TIMEOUT_MS);
  vm.link.sendIdentity(id, IDENTITY);
  vm.link.release();
}

async function migrationDone(vm: Vm, begin: () => Promise<unknown>): Promise<void> {
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
async function goOn(vm: Vm): Promise<void> {
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

function capabilities(names: readonly string[]): { execute: string; arguments: Record<string, unknown> } {
  return {
    execute: 'migrate-set-capabilities',
    arguments: { capabilities: ['events', ...names].map((capability) => ({ capability, state: true })) },
  };
}

async function inScratch<T>(guest: PeerGuest, work: (directory: string) => Promise<T>): Promise<T> {
  const directory = await mkdtemp(join(guest.scratch, 'sf-peer-'));
  try {
    return await work(directory);
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
}

export async function coldBootMs(guest: PeerGuest): Promise<number> {
  return inScratch(guest, async (directory) => {
    const begin = performance.now();
    await using vm = await start(guest, { name: 'boot', directory }, booting(guest, ANONYMOUS));
    await answered(vm);
    return performance.now() - begin;
  });
}

/** From `stop` in the parent to the answer of the resumed copy; one sample for each round on one warmed parent. */
export async function suspendCopyResumeMs(guest: PeerGuest, rounds: number): Promise<number[]> {
  return inScratch(guest, async (directory) => {
    await using parent = await start(guest, { name: 'parent', directory }, booting(guest, ANONYMOUS));
    await answered(parent);
    await fill(parent, guest.touchedMib);
    await parent.qemu.qmp.execute(capabilities([]));
    // As fast as the machine can: QEMU's default limit is for live migration over a busy network.
    await parent.qemu.qmp.execute({
      execute: 'migrate-set-parameters',
      arguments: { 'max-bandwidth': 2 ** 37 },
    });
    const samples: number[] = [];
    for (let round = 0; round < rounds; round++) {
      const [saved, copied] = [join(directory, 'saved'), join(directory, 'copied')];
      const where = { name: `copy${round}`, directory };
      await using copy = await start(guest, where, { origin: { kind: 'incoming' }, ram: ANONYMOUS });
      await copy.qemu.qmp.execute(capabilities([]));
      const begin = performance.now();
      await parent.qemu.qmp.execute({ execute: 'stop' });
      await migrationDone(parent, () =>
        parent.qemu.qmp.execute({ execute: 'migrate', arguments: { uri: `exec:cat > ${saved}` } }),
      );
      await goOn(parent);
      await copyFile(saved, copied);
      await migrationDone(copy, () =>
        copy.qemu.qmp.execute({ execute: 'migrate-incoming', arguments: { uri: `exec:cat ${copied}` } }),
      );
      await goOn(copy);
      await ping(copy, 100 + round);
      samples.push(performance.now() - begin);
      await rm(saved);
      await rm(copied);
    }
    return samples;
  });
}

/** The template's state is saved once; each sample is one more copy on the same host, from its loading to its answer. */
export async function templateCloneMs(guest: PeerGuest, rounds: number): Promise<number[]> {
  return inScratch(guest, async (directory) => {
    const ramFile = join(directory, 'ram');
    const state = join(directory, 'state');
    await using parent = await start(
      guest,
      { name: 'parent', directory },
      booting(guest, { kind: 'file', path: ramFile, share: true }),
    );
    await answered(parent);
    await fill(parent, guest.touchedMib);
    await parent.qemu.qmp.execute(capabilities(['x-ignore-shared']));
    await parent.qemu.qmp.execute({ execute: 'stop' });
    await migrationDone(parent, () =>
      parent.qemu.qmp.execute({ execute: 'migrate', arguments: { uri: `exec:cat > ${state}` } }),
    );
    const samples: number[] = [];
    for (let round = 0; round < rounds; round++) {
      const ram: VmRam = { kind: 'file', path: ramFile, share: false };
      await using copy = await start(
        guest,
        { name: `copy${round}`, directory },
        { origin: { kind: 'incoming' }, ram },
      );
      await copy.qemu.qmp.execute(capabilities(['x-ignore-shared']));
      const begin = performance.now();
      await migrationDone(copy, () =>
        copy.qemu.qmp.execute({ execute: 'migrate-incoming', arguments: { uri: `exec:cat ${state}` } }),
      );
      await goOn(copy);
      await ping(copy, 100 + round);
      samples.push(performance.now() - begin);
    }
    return samples;
  });
}
