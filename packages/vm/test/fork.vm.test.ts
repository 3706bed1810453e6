// The fork itself on a real QEMU: a guest of eleven bytes that counts in memory, under each accelerator there is.

import { execFileSync } from 'node:child_process';
import { accessSync, readdirSync, readFileSync, openSync, readSync, closeSync, existsSync } from 'node:fs';
import { copyFile, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { createServer, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import {
  AgentLink,
  countingRom,
  createOverlay,
  DiskChain,
  expectDeviceState,
  freezeVm,
  goOn,
  loadDeviceState,
  openDeviceState,
  QemuProcess,
  rewindVm,
  vmPaths,
  within,
  type Accel,
  type RamRange,
  type VmSpec,
} from '../src/index.ts';

/** Of what takes milliseconds on a machine that does nothing else. */
const DEADLINE_MS = 20_000;
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

const DISK_BYTES = 4 << 20;

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
      const { pid } = await within(lease.connected, DEADLINE_MS, 'the lease');
      expect(pid).toBe(frozen.process.pid);
      expect(readFileSync(`/proc/${pid}/comm`, 'utf8').trim()).toBe('sf-frozen');
      const atFork = counter(pid, ram);
      await expect.poll(() => counter(vm.pid, ram)).toBeGreaterThan(atFork);
      expect(counter(pid, ram)).toBe(atFork);
      expect(atFork).toBeGreaterThanOrEqual(before);
      expect(frozen.deviceState.length).toBeGreaterThan(1000);
      await lease[Symbol.asyncDispose]();
      // The shim reaps it within its interval.
      await expect.poll(() => existsSync(`/proc/${pid}`)).toBe(false);
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
    await within(lease.connected, DEADLINE_MS, 'the lease');
    const atFork = counter(frozen.process.pid, ram);
    const ramFile = join(directory, 'ram');
    await writeFile(ramFile, await dumpRam(frozen.process.pid, ram));
    const clone = await QemuProcess.start(spec('clone', ramFile), { forkShim });
    undo.defer(async () => void (await clone.kill()));
    const cloneRam = await clone.forkControl.ramRange(MEMORY_MIB << 20);
    await expectDeviceState(clone);
    const way = await openDeviceState(clone);
    // it answers while it waits at the other end
    expect(await clone.qmp.execute({ execute: 'query-status' })).toMatchObject({ running: false });
    await loadDeviceState(clone, frozen.deviceState, way);
    expect(counter(clone.pid, cloneRam)).toBe(atFork);
    await goOn(clone);
    expect(await clone.qmp.execute({ execute: 'query-status' })).toMatchObject({ running: true });
    await expect.poll(() => counter(clone.pid, cloneRam)).toBeGreaterThan(atFork);
    // Private: what the clone writes never reaches the image that it came from.
    expect(readFileSync(ramFile).readUInt32LE(Number(COUNTER))).toBe(atFork);
  });

  it('puts a clone back to its fork point as often as one likes, memory, processor and disk', async () => {
    await using undo = new AsyncDisposableStack();
    const at = (name: string): string => join(directory, name);
    await writeFile(at('disk.raw'), Buffer.alloc(DISK_BYTES));
    const under = { backing: at('disk.raw'), backingFormat: 'raw' as const };
    const parentDisk = { overlay: at('parent.qcow2'), ...under };
    await createOverlay({ path: parentDisk.overlay, ...under });
    const vm = await QemuProcess.start({ ...spec('parent'), disk: parentDisk }, { forkShim });
    undo.defer(async () => void (await vm.kill()));
    const ram = await vm.forkControl.ramRange(MEMORY_MIB << 20);
    await sleep(200);
    const lease = undo.use(new Lease(at('lease')));
    const frozen = await freezeVm(vm, { leasePath: at('lease'), disk: null });
    await within(lease.connected, DEADLINE_MS, 'the lease');
    await writeFile(at('ram'), await dumpRam(frozen.process.pid, ram));
    await writeFile(at('state'), frozen.deviceState);
    const atFork = counter(frozen.process.pid, ram);

    await createOverlay({ path: at('blank'), ...under });
    await copyFile(at('blank'), at('disk-0.qcow2'));
    const disk = { overlay: at('disk-0.qcow2'), ...under };
    const clone = await QemuProcess.start({ ...spec('clone', at('ram')), disk }, { forkShim });
    undo.defer(async () => void (await clone.kill()));
    const cloneRam = await clone.forkControl.ramRange(MEMORY_MIB << 20);
    const chain = new DiskChain({ directory, sizeBytes: DISK_BYTES });
    let link = await AgentLink.connect(clone.paths.agent, { timeoutMs: DEADLINE_MS, gone: clone.ended });
    undo.defer(() => link.close());
    await expectDeviceState(clone);
    await loadDeviceState(clone, frozen.deviceState);
    await clone.qmp.execute({ execute: 'cont' });
    for (let round = 0; round < 4; round++) {
      await expect.poll(() => counter(clone.pid, cloneRam)).toBeGreaterThan(atFork);
      expect(await io(clone, `write -P ${round + 1} 0 65536`)).toContain('wrote 65536/65536');
      // a clone may have forked meanwhile
      if (round === 1) {
        await chain.prepare(clone);
        await clone.qmp.execute(chain.switchCommand());
        chain.switched();
        expect(await io(clone, 'write -P 9 65536 65536')).toContain('wrote 65536/65536');
      }
      if (round === 2) await chain.prepare(clone);
      link = await rewindVm(clone, {
        deviceState: at('state'),
        disk: { chain, blank: { path: at('blank'), ...under } },
        link,
      });
      expect(link.closed).toBe(false);
      expect(counter(clone.pid, cloneRam)).toBe(atFork);
      await clone.qmp.execute({ execute: 'cont' });
      expect(await io(clone, 'read -P 0 0 131072')).toMatch(/^read 131072/);
      expect(readdirSync(directory).filter((name) => /^disk-\d+/.test(name)).length).toBe(1);
    }
    expect(readFileSync(at('ram')).readUInt32LE(Number(COUNTER))).toBe(atFork);
  });

  /** Reads or writes the disk by way of QEMU itself, which says what came of it on its own output. */
  async function io({ qmp, paths }: QemuProcess, command: string): Promise<string> {
    const devices = (await qmp.execute({ execute: 'query-block' })) as { qdev: string }[];
    const before = readFileSync(paths.stderr, 'utf8').length;
    await qmp.execute({
      execute: 'human-monitor-command',
      arguments: { 'command-line': `qemu-io -d ${devices[0]?.qdev ?? ''} "${command}"` },
    });
    return readFileSync(paths.stderr, 'utf8').slice(before);
  }

  describe('the disk of a master VM', () => {
    let vm: QemuProcess;
    let chain: DiskChain;
    beforeEach(async () => {
      const overlay = join(directory, 'disk-0.qcow2');
      const backing = join(directory, 'disk.raw');
      await writeFile(backing, Buffer.alloc(DISK_BYTES));
      await createOverlay({ path: overlay, backing, backingFormat: 'raw' });
      const disk = { overlay, backing, backingFormat: 'raw' as const };
      vm = await QemuProcess.start({ ...spec('parent'), disk }, { forkShim });
      chain = new DiskChain({ directory, sizeBytes: DISK_BYTES });
    });
    afterEach(async () => vm.kill());

    const overlays = (): string[] => readdirSync(directory).filter((name) => /^disk-\d+\.qcow2$/.test(name));

    /** As a fork does. */
    async function freeze(): Promise<number> {
      await chain.settle(vm);
      await chain.prepare(vm);
      await vm.qmp.execute(chain.switchCommand());
      return chain.switched().generation;
    }

    it('prepares the next overlay once for all forks that ask for it at the same time', async () => {
      await Promise.all([chain.prepare(vm), chain.prepare(vm)]);
      expect(await freeze()).toBe(0);
      await Promise.all([chain.prepare(vm), chain.prepare(vm)]);
      expect(overlays().length).toBe(3);
    });

    it('merges what no fork reads any more, and nothing else, and is the same disk', async () => {
      const write = async (block: number): Promise<void> => {
        expect(await io(vm, `write -P ${block + 1} ${block * 65536} 65536`)).toContain('wrote 65536/65536');
      };
      for (let fork = 0; fork < 40; fork++) {
        await write(fork);
        const generation = await freeze();
        chain.pin(generation);
        if (fork !== 20) chain.unpin(generation); // one fork is not over yet
        await chain.shorten(vm);
        if (fork % 3 !== 0) await chain.shortened(); // others run into the next fork
      }
      await chain.shorten(vm);
      await chain.shortened();
      expect(existsSync(join(directory, 'disk-20.qcow2'))).toBe(true);
      expect(overlays().length).toBeLessThan(26);
      chain.unpin(20);
      await chain.shorten(vm);
      await chain.shortened();
      await freeze();
      // one merged, the frozen one, the one written to
      expect(overlays().length).toBeLessThan(12);
      for (let block = 0; block < 40; block++)
        expect(await io(vm, `read -P ${block + 1} ${block * 65536} 65536`)).toMatch(/^read 65536\/65536/);
      const info = execFileSync('qemu-img', ['check', '-U', join(directory, overlays()[0] ?? '')]);
      expect(info.toString()).toContain('No errors');
    });

    it('is found again by the next daemon, and left as it was', async () => {
      for (let fork = 0; fork < 3; fork++) await freeze();
      await chain.prepare(vm);
      const found = await DiskChain.of(vm, { directory, sizeBytes: DISK_BYTES });
      if (!found) throw new Error('the VM has a disk');
      chain = found;
      await chain.shorten(vm);
      await chain.shortened();
      expect(await freeze()).toBe(3);
      expect(overlays().length).toBe(5);
    });
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
    const end = await within(vm.ended, DEADLINE_MS, 'the end');
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
