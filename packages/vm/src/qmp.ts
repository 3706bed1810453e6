// A QMP client (QEMU docs/interop/qmp-spec): one unix socket, commands answered in order, events in between.

import { EventEmitter } from 'node:events';
import type { Socket } from 'node:net';
import { SnowflockError } from '@snowflock/protocol';
import { z } from 'zod';
import { within } from './deadline.ts';
import { connectUnix } from './unix-socket.ts';

/** A reply larger than this is not one that we ever ask for. */
const LINE_MAX_BYTES = 4 << 20;
const COMMAND_TIMEOUT_MS = 10_000;

const QmpMessage = z.union([
  z.object({ return: z.unknown() }),
  z.object({ error: z.object({ class: z.string(), desc: z.string() }) }),
  z.object({ event: z.string(), data: z.record(z.string(), z.unknown()).optional() }),
  z.object({ QMP: z.unknown() }),
]);

export interface QmpCommand {
  readonly execute: string;
  readonly arguments?: Record<string, unknown>;
}

interface Waiter {
  readonly command: string;
  readonly resolve: (value: unknown) => void;
  readonly reject: (error: Error) => void;
}

/** Emits `event` (name, data) for QMP events and `close` once when the connection ends. */
export class Qmp extends EventEmitter {
  readonly #socket: Socket;
  readonly #waiters: Waiter[] = [];
  #text = '';
  #closed = false;

  private constructor(socket: Socket) {
    super();
    this.#socket = socket;
    socket.setEncoding('utf8');
    socket.on('data', (chunk: string) => this.#onData(chunk));
    socket.on('error', () => socket.destroy());
    socket.on('close', () => this.#onClose());
  }

  static async connect(path: string, options: { timeoutMs: number; gone?: Promise<unknown> }): Promise<Qmp> {
    const qmp = new Qmp(await connectUnix(path, { ...options, what: 'QMP' }));
    await qmp.execute({ execute: 'qmp_capabilities' }, options.timeoutMs);
    return qmp;
  }

  async execute(command: QmpCommand, timeoutMs = COMMAND_TIMEOUT_MS): Promise<unknown> {
    const [value] = await this.executeAll([command], timeoutMs);
    return value;
  }

  /**
   * Sends the commands in one write; QEMU runs them in order, each also when an earlier one failed. Rejects with the first failure,
   * after the last reply.
   */
  async executeAll(commands: readonly QmpCommand[], timeoutMs = COMMAND_TIMEOUT_MS): Promise<unknown[]> {
    if (this.#closed) throw new SnowflockError('vm-failed', 'QMP: the VM has ended');
    const replies = commands.map(
      (command) =>
        new Promise<unknown>((resolve, reject) =>
          this.#waiters.push({ command: command.execute, resolve, reject }),
        ),
    );
    this.#socket.write(commands.map((command) => JSON.stringify(command) + '\r\n').join(''));
    const names = commands.map((command) => command.execute).join(', ');
    const settled = await within(Promise.allSettled(replies), timeoutMs, `QMP ${names}`);
    return settled.map((result) => {
      if (result.status === 'rejected') throw result.reason;
      return result.value;
    });
  }

  close(): void {
    this.#socket.destroy();
  }

  #onData(chunk: string): void {
    this.#text += chunk;
    if (this.#text.length > LINE_MAX_BYTES) {
      this.#socket.destroy();
      return;
    }
    const lines = this.#text.split('\n');
    this.#text = lines.pop() ?? '';
    for (const line of lines) {
      if (line.trim() !== '') this.#onMessage(line);
    }
  }

  #onMessage(line: string): void {
    const message = QmpMessage.parse(JSON.parse(line));
    if ('QMP' in message) return;
    if ('event' in message) {
      this.emit('event', message.event, message.data ?? {});
      return;
    }
    const waiter = this.#waiters.shift();
    if (!waiter) return;
    if ('error' in message)
      waiter.reject(new SnowflockError('vm-failed', `QMP ${waiter.command}: ${message.error.desc}`));
    else waiter.resolve(message.return);
  }

  #onClose(): void {
    this.#closed = true;
    for (const waiter of this.#waiters.splice(0))
      waiter.reject(
        new SnowflockError('vm-failed', `QMP ${waiter.command}: the VM ended before it answered`),
      );
    this.emit('close');
  }
}
