// The fork itself on a real QEMU: a guest of eleven bytes that counts in memory, under each accelerator there is.

import { accessSync, readFileSync, openSync, readSync, closeSync, existsSync } from 'node:fs';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { createServer, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import {
  countingRom,
  createOverlay,
  DiskChain,
  expectDeviceState,
  freezeVm,
  loadDeviceState,
  QemuProcess,
  vmPaths,
  within,
  type Accel,
  type RamRange,
  type VmSpec,
} from '../src/index.ts';

const MEMORY_MIB = 64;
const COUNTER = 0x500n;
const forkShim = join(import.meta.dirname, '../../../build/native/forkshim.so');

function hasKvm(): boolean {
  try {
    accessSync('/dev/kvm');
    return true;
  } catch {
    return false;
  }
}

/** Stands where the memserver will: owns the life of the frozen process. */
class Lease implements AsyncDisposable {
  readonly #server: Server;
  readonly connected: Promise<{ socket: Socket; pid: number }>;
  constructor(path: string) {
    const { promise, resolve } = Promise.withResolvers<{ socket: Socket; pid: number }>();
    this.connected = promise;
    this.#server = createServer((socket) => {
      socket.once('data', (data: Buffer) => resolve({ socket, pid: Number(data.toString()) }));
    }).listen(path);
  }
  async [Symbol.asyncDispose](): Promise<void> {
    (await this.connected).socket.destroy();
    await new Promise((resolve) => this.#server.close(resolve));
  }
}

function counter(pid: number, ram: RamRange): number {
  const fd = openSync(`/proc/${pid}/mem`, 'r');
  try {
    const word = Buffer.alloc(4);
    readSync(fd, word, 0, 4, Number(ram.start + COUNTER));
    return word.readUInt32LE();
  } finally {
    closeSync(fd);
  }
}

async function dumpRam(pid: number, ram: RamRange): Promise<Buffer> {
  const fd = openSync(`/proc/${pid}/mem`, 'r');
  try {
    const all = Buffer.alloc(ram.length);
    for (let at = 0; at < all.length; at += 1 << 20) readSync(fd, all, at, 1 << 20, Number(ram.start) + at);
    return all;
  } finally {
    closeSync(fd);
  }
}

const accels: Accel[] = hasKvm() ? ['tcg', 'kvm'] : ['tcg'];

describe.each(accels)('fork under %s', (accel) => {
  let directory: string;
  beforeEach(async () => {
    directory = await mkdtemp(join(tmpdir(), 'sf-vm-'));
    await writeFile(join(directory, 'rom'), countingRom());
  });
  afterEach(() => rm(directory, { recursive: true, force: true }));

  const spec = (name: string, ramFile?: string): VmSpec => ({
    name,
    accel,
    vcpus: 1,
    memoryMib: MEMORY_MIB,
    paths: vmPaths(join(directory, name)),
    origin: ramFile === undefined ? { kind: 'firmware' } : { kind: 'incoming' },
    ram: ramFile === undefined ? { kind: 'anonymous' } : { kind: 'file', path: ramFile, share: false },
    firmware: join(directory, 'rom'),
    disk: null,
    nic: null,
  });

  it('freezes memory while the VM goes on, and the frozen copy ends with its lease', async () => {
    const vm = await QemuProcess.start(spec('parent'), { forkShim });
    try {
      const ram = await vm.forkControl.ramRange(MEMORY_MIB << 20);
      await sleep(200);
      const before = counter(vm.pid, ram);
      const leasePath = join(directory, 'lease');
      const lease = new Lease(leasePath);
      const frozen = await freezeVm(vm, { leasePath, disk: null });
      const { pid } = await within(lease.connected, 2000, 'the lease');
      expect(pid).toBe(frozen.process.pid);
      expect(readFileSync(`/proc/${pid}/comm`, 'utf8').trim()).toBe('sf-frozen');
      const atFork = counter(pid, ram);
      await sleep(300);
      expect(counter(pid, ram)).toBe(atFork);
      expect(atFork).toBeGreaterThanOrEqual(before);
      expect(counter(vm.pid, ram)).toBeGreaterThan(atFork);
      expect(frozen.deviceState.length).toBeGreaterThan(1000);
      await lease[Symbol.asyncDispose]();
      // The shim reaps it within its interval.
      for (let i = 0; i < 100 && existsSync(`/proc/${pid}`); i++) await sleep(20);
      expect(existsSync(`/proc/${pid}`)).toBe(false);
    } finally {
      await vm.kill();
    }
  });

  it('starts a clone from a frozen copy, which counts on from there', async () => {
    const vm = await QemuProcess.start(spec('parent'), { forkShim });
    await using undo = new AsyncDisposableStack();
    undo.defer(async () => void (await vm.kill()));
    const ram = await vm.forkControl.ramRange(MEMORY_MIB << 20);
    await sleep(200);
    const leasePath = join(directory, 'lease');
    const lease = undo.use(new Lease(leasePath));
    const frozen = await freezeVm(vm, { leasePath, disk: null });
    await within(lease.connected, 2000, 'the lease');
    const atFork = counter(frozen.process.pid, ram);
    const ramFile = join(directory, 'ram');
    await writeFile(ramFile, await dumpRam(frozen.process.pid, ram));
    const clone = await QemuProcess.start(spec('clone', ramFile), { forkShim });
    undo.defer(async () => void (await clone.kill()));
    const cloneRam = await clone.forkControl.ramRange(MEMORY_MIB << 20);
    await expectDeviceState(clone);
    await loadDeviceState(clone, frozen.deviceState);
    expect(counter(clone.pid, cloneRam)).toBe(atFork);
    await clone.qmp.execute({ execute: 'cont' });
    await sleep(300);
    expect(counter(clone.pid, cloneRam)).toBeGreaterThan(atFork);
    // Private: what the clone writes never reaches the image that it came from.
    expect(readFileSync(ramFile).readUInt32LE(Number(COUNTER))).toBe(atFork);
  });

  it('prepares the next disk overlay once for all forks that ask for it at the same time', async () => {
    const overlay = join(directory, 'disk-0.qcow2');
    const backing = join(directory, 'disk.raw');
    await writeFile(backing, Buffer.alloc(1 << 20));
    await createOverlay({ path: overlay, backing, backingFormat: 'raw' });
    const disk = { overlay, backing, backingFormat: 'raw' as const };
    const vm = await QemuProcess.start({ ...spec('parent'), disk }, { forkShim });
    try {
      const chain = new DiskChain({ directory, overlay });
      await Promise.all([chain.prepare(vm), chain.prepare(vm)]);
      await vm.qmp.execute(chain.switchCommand());
      expect(chain.switched().path).toBe(overlay);
      await Promise.all([chain.prepare(vm), chain.prepare(vm)]);
      expect(chain.current).toBe(join(directory, 'disk-1.qcow2'));
    } finally {
      await vm.kill();
    }
  });

  it('says that a clone ended before it was given its device state, to who gives it', async () => {
    const ramFile = join(directory, 'ram');
    await writeFile(ramFile, Buffer.alloc(MEMORY_MIB << 20));
    const clone = await QemuProcess.start(spec('clone', ramFile), { forkShim });
    await expectDeviceState(clone);
    await clone.kill();
    await expect(loadDeviceState(clone, Buffer.alloc(100))).rejects.toThrow(/ended/);
    await sleep(20); // time for a rejection that nobody handles, which fails the run
  });

  it('says why a VM ended', async () => {
    const vm = await QemuProcess.start(spec('parent'), { forkShim });
    process.kill(vm.pid, 'SIGKILL');
    const end = await within(vm.ended, 2000, 'the end');
    expect(end.reason).toContain('SIGKILL');
    await expect(vm.qmp.execute({ execute: 'query-status' })).rejects.toThrow(/ended/);
  });
});

it('a QEMU that cannot start says so at once', async () => {
  const directory = await mkdtemp(join(tmpdir(), 'sf-vm-'));
  try {
    const bad: VmSpec = {
      name: 'bad',
      accel: 'tcg',
      vcpus: 1,
      memoryMib: MEMORY_MIB,
      paths: vmPaths(join(directory, 'bad')),
      origin: { kind: 'boot', kernel: '/nonexistent/kernel', initrd: '/nonexistent/initrd', append: '' },
      ram: { kind: 'anonymous' },
      disk: null,
      nic: null,
    };
    await expect(QemuProcess.start(bad, { forkShim })).rejects.toThrow(/nonexistent/);
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
});
