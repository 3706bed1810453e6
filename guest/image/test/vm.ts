// A VM for tests: QEMU with the guest channel, the test playing sfld.

import { spawn, type ChildProcess } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { connect, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { ImageManifest } from '../src/index.ts';
import { HostSide } from './host-side.ts';

export interface TestVmOptions {
  readonly memoryMib?: number;
  readonly cpus?: number;
  readonly append?: string;
  readonly network?: boolean;
  readonly args?: readonly string[];
}

export class TestVm implements AsyncDisposable {
  readonly host: HostSide;
  /** From starting QEMU to HELLO. */
  readonly bootMs: number;
  readonly #qemu: ChildProcess;
  readonly #directory: string;
  readonly #console: { text: string };

  private constructor(parts: {
    host: HostSide;
    bootMs: number;
    qemu: ChildProcess;
    directory: string;
    console: { text: string };
  }) {
    this.host = parts.host;
    this.bootMs = parts.bootMs;
    this.#qemu = parts.qemu;
    this.#directory = parts.directory;
    this.#console = parts.console;
  }

  static async boot(image: ImageManifest, options: TestVmOptions = {}): Promise<TestVm> {
    const directory = mkdtempSync(join(tmpdir(), 'sf-image-vm-'));
    const channel = join(directory, 'channel');
    const console = { text: '' };
    const started = Date.now();
    const qemu = spawn('qemu-system-x86_64', qemuArgs(image, channel, options), {
      stdio: ['pipe', 'pipe', 'pipe'],
    });
    qemu.stdout.on('data', (chunk: Buffer) => (console.text += chunk.toString()));
    qemu.stderr.on('data', (chunk: Buffer) => (console.text += chunk.toString()));
    try {
      const host = new HostSide(await connectSoon(channel, qemu));
      await host.next('hello', 60_000);
      return new TestVm({ host, bootMs: Date.now() - started, qemu, directory, console });
    } catch (error) {
      qemu.kill('SIGKILL');
      rmSync(directory, { recursive: true, force: true });
      throw new Error(`${String(error)}; console:\n${console.text}`, { cause: error });
    }
  }

  get consoleText(): string {
    return this.#console.text;
  }

  /** Until QEMU ends by itself. */
  async ended(timeoutMs: number): Promise<boolean> {
    for (const end = Date.now() + timeoutMs; Date.now() < end; await sleep(20))
      if (this.#qemu.exitCode !== null || this.#qemu.signalCode !== null) return true;
    return false;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.host.close();
    this.#qemu.kill('SIGKILL');
    await this.ended(5000);
    rmSync(this.#directory, { recursive: true, force: true });
  }
}

function qemuArgs(image: ImageManifest, channel: string, options: TestVmOptions): string[] {
  const args = [
    '-M',
    'q35',
    '-accel',
    'tcg,thread=multi',
    '-cpu',
    'max',
    '-m',
    String(options.memoryMib ?? 256),
  ];
  args.push(
    '-smp',
    String(options.cpus ?? 1),
    '-nodefaults',
    '-display',
    'none',
    '-no-reboot',
    '-serial',
    'stdio',
  );
  args.push(
    '-kernel',
    image.kernel,
    '-initrd',
    image.initrd,
    '-append',
    `${image.append} ${options.append ?? ''}`.trim(),
  );
  args.push(
    '-device',
    'virtio-serial-pci',
    '-chardev',
    `socket,id=channel,path=${channel},server=on,wait=off`,
  );
  args.push('-device', 'virtserialport,chardev=channel,name=snowflock');
  if (image.disk)
    args.push(
      '-drive',
      `if=none,id=disk,file=${image.disk.path},format=raw,snapshot=on`,
      '-device',
      'virtio-blk-pci,drive=disk',
    );
  if (options.network)
    args.push('-netdev', 'user,id=net,restrict=on', '-device', 'virtio-net-pci,netdev=net,romfile=');
  args.push(
    '-device',
    'virtio-balloon-pci,free-page-reporting=on',
    '-device',
    'virtio-rng-pci',
    ...(options.args ?? []),
  );
  return args;
}

async function connectSoon(path: string, qemu: ChildProcess): Promise<Socket> {
  for (const end = Date.now() + 10_000; Date.now() < end; await sleep(10)) {
    if (qemu.exitCode !== null) throw new Error(`QEMU ended with status ${qemu.exitCode}`);
    const socket = connect(path);
    const ok = await new Promise<boolean>((resolve) => {
      socket.once('connect', () => resolve(true));
      socket.once('error', () => resolve(false));
    });
    if (ok) return socket;
  }
  throw new Error('QEMU never opened the channel');
}
