// The client of the fork shim's control socket (native/forkshim).

import type { Socket } from 'node:net';
import { SnowflockError } from '@snowflock/protocol';
import { within } from './deadline.ts';
import { connectUnix } from './unix-socket.ts';

/** fork(2) of a QEMU with many GiB in small pages stays far below this. */
const FORK_TIMEOUT_MS = 5_000;

export interface RamRange {
  readonly start: bigint;
  readonly length: number;
}

export interface FrozenProcess {
  readonly pid: number;
  readonly forkUs: number;
}

export class ForkControl {
  readonly #socket: Socket;
  #waiting: ((line: string) => void) | null = null;
  #text = '';
  #ended = false;

  private constructor(socket: Socket) {
    this.#socket = socket;
    socket.setEncoding('utf8');
    socket.on('data', (chunk: string) => this.#onData(chunk));
    socket.on('error', () => socket.destroy());
    socket.on('close', () => {
      this.#ended = true;
      this.#waiting?.('err the VM has ended');
    });
  }

  static async connect(
    path: string,
    options: { timeoutMs: number; gone?: Promise<unknown> },
  ): Promise<ForkControl> {
    return new ForkControl(await connectUnix(path, { ...options, what: 'fork shim' }));
  }

  /** The RAM block of exactly `sizeBytes`: the guest's memory; the others are firmware and option ROMs. */
  async ramRange(sizeBytes: number): Promise<RamRange> {
    const words = await this.#ask('ranges');
    const all = words.map((word) => {
      const [start, length] = word.split(':');
      return { start: BigInt(`0x${start}`), length: Number(`0x${length}`) };
    });
    const ram = all.filter((range) => range.length === sizeBytes);
    if (ram.length !== 1 || !ram[0])
      throw new SnowflockError(
        'internal',
        `expected one RAM block of ${sizeBytes} bytes, QEMU has ${words.join(' ')}`,
      );
    return ram[0];
  }

  /** Freezes the stopped VM's memory in a process that lives while the listener at `leasePath` keeps its connection. */
  async fork(leasePath: string): Promise<FrozenProcess> {
    const [pid, us] = await this.#ask(`fork ${leasePath}`);
    return { pid: Number(pid), forkUs: Number(us) };
  }

  /** In a stopped clone: its RAM is again what the file holds, and a device state may be loaded once more. */
  async rewind(): Promise<void> {
    await this.#ask('rewind');
  }

  close(): void {
    this.#socket.destroy();
  }

  async #ask(line: string): Promise<string[]> {
    if (this.#ended) throw new SnowflockError('vm-failed', 'fork shim: the VM has ended');
    if (this.#waiting) throw new SnowflockError('internal', 'fork shim: one request at a time');
    const reply = new Promise<string>((resolve) => (this.#waiting = resolve));
    this.#socket.write(line + '\n');
    try {
      const [status, ...words] = (await within(reply, FORK_TIMEOUT_MS, `fork shim '${line}'`)).split(' ');
      if (status !== 'ok') throw new SnowflockError('fork-failed', `fork shim: ${words.join(' ')}`);
      return words;
    } finally {
      this.#waiting = null;
    }
  }

  #onData(chunk: string): void {
    this.#text += chunk;
    const end = this.#text.indexOf('\n');
    if (end < 0) return;
    const line = this.#text.slice(0, end);
    this.#text = this.#text.slice(end + 1);
    this.#waiting?.(line);
  }
}
