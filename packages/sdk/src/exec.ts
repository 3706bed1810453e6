// Runs a command in a guest: the host's end of an exec session (docs/guest-channel.md) over an upgraded connection.
//
//   start ─▶ running ─▶ exited (status)          the connection ends before the status: 'vm-failed'
//               └── abort ─▶ detached ('interrupted'); sfld sends the command SIGHUP
//
// Invariants: never more input in flight than the guest granted; output is granted again only when its reader has taken
// it, so a slow reader holds the command back instead of filling memory.

import type { Readable, Writable } from 'node:stream';
import { type Duplex } from 'node:stream';
import { setTimeout as sleep } from 'node:timers/promises';
import {
  type ControlClient,
  encodeGuestFrame,
  EXEC_WINDOW_BYTES,
  GUEST_PAYLOAD_MAX,
  type GuestFrame,
  GuestFrameDecoder,
  GuestFrameType,
  parseVmRef,
  SnowflockError,
} from '@snowflock/protocol';

const SESSION_ID = 1;
/** sfld gives up waiting for a guest's agent before this; a guest that boots is then asked again. */
const UPGRADE_TIMEOUT_MS = 35_000;
/** A guest under emulation boots in well under this. */
export const EXEC_WAIT_MS = 180_000;
const RETRY_PAUSE_MS = 250;
/** As a connection ends whose other side had not read everything. */
const LOST_CODES: ReadonlySet<string> = new Set(['ECONNRESET', 'EPIPE']);

export interface ExecOptions {
  readonly argv: readonly string[];
  /** null: the command's input is empty. */
  readonly stdin: Readable | null;
  readonly stdout: Writable;
  readonly stderr: Writable;
  /** Detaches: the command in the guest gets SIGHUP. */
  readonly signal?: AbortSignal | undefined;
}

export interface ExecHandle {
  /** Exit status of the command, or 128 + signal. */
  readonly exited: Promise<number>;
  /** Sends a signal to the command's process group. */
  readonly kill: (signal: number) => void;
}

/** Opens the connection; waits for a guest that still boots. */
export async function connectExec(
  client: ControlClient,
  vm: string,
  options: { readonly waitMs?: number | undefined; readonly signal?: AbortSignal | undefined } = {},
): Promise<Duplex> {
  parseVmRef(vm);
  const { waitMs = EXEC_WAIT_MS, signal } = options;
  const deadline = performance.now() + waitMs;
  for (;;) {
    try {
      const timeoutMs = Math.max(1, Math.min(UPGRADE_TIMEOUT_MS, deadline - performance.now()));
      const path = `/v1/vms/${vm}/exec`;
      return await client.upgrade({
        path,
        protocol: 'snowflock-exec',
        timeoutMs,
        ...(signal ? { signal } : {}),
      });
    } catch (error) {
      const booting = error instanceof SnowflockError && error.code === 'timeout';
      if (!booting || performance.now() + RETRY_PAUSE_MS >= deadline) throw error;
      await sleep(RETRY_PAUSE_MS, undefined, { signal });
    }
  }
}

function encodeArgv(argv: readonly string[]): Buffer {
  if (argv.length === 0 || argv[0] === '') throw new SnowflockError('bad-request', 'no command given');
  if (argv.some((word) => word.includes('\0')))
    throw new SnowflockError('bad-request', 'an argument holds a NUL byte');
  const payload = Buffer.from(argv.map((word) => `${word}\0`).join(''));
  if (payload.length > GUEST_PAYLOAD_MAX)
    throw new SnowflockError(
      'bad-request',
      `the command's arguments are longer than ${GUEST_PAYLOAD_MAX} bytes`,
    );
  return payload;
}

/** Starts the command on a connection that it then owns. */
export function startExec(connection: Duplex, options: ExecOptions): ExecHandle {
  const session = new Session(connection, options);
  const exited = session.run();
  exited.catch(() => undefined); // who never looks at it does not mind
  return { exited, kill: (signal) => session.kill(signal) };
}

class Session {
  readonly #connection: Duplex;
  readonly #options: ExecOptions;
  readonly #ended = new AbortController();
  #inputCredit = EXEC_WINDOW_BYTES;
  #wakeInput: (() => void) | undefined;

  constructor(connection: Duplex, options: ExecOptions) {
    this.#connection = connection;
    this.#options = options;
  }

  kill(signal: number): void {
    if (!this.#ended.signal.aborted) this.#send(GuestFrameType.execSignal, Buffer.from([signal]));
  }

  async run(): Promise<number> {
    const { argv, stdin, signal } = this.#options;
    const onAbort = (): void =>
      void this.#connection.destroy(new SnowflockError('interrupted', 'detached', { cause: signal?.reason }));
    try {
      const exited = this.#receive();
      exited.catch(() => undefined); // awaited below
      signal?.throwIfAborted();
      signal?.addEventListener('abort', onAbort, { once: true });
      this.#send(GuestFrameType.execStart, encodeArgv(argv));
      const pumped = this.#pump(stdin);
      const status = await exited;
      this.#ended.abort();
      this.#wakeInput?.();
      stdin?.destroy();
      await pumped;
      return status;
    } finally {
      this.#ended.abort();
      this.#wakeInput?.();
      stdin?.destroy();
      signal?.removeEventListener('abort', onAbort);
      this.#connection.destroy();
    }
  }

  #send(type: GuestFrameType, payload?: Buffer): boolean {
    return this.#connection.write(
      encodeGuestFrame({ type, id: SESSION_ID, ...(payload ? { payload } : {}) }),
    );
  }

  #grant(bytes: number): void {
    if (this.#ended.signal.aborted || this.#connection.destroyed) return;
    const payload = Buffer.alloc(4);
    payload.writeUInt32LE(bytes);
    this.#send(GuestFrameType.execCredit, payload);
  }

  /** Takes frames until the exit status; resolves when all output before it has been handed over. */
  #receive(): Promise<number> {
    const decoder = new GuestFrameDecoder();
    const { stdout, stderr } = this.#options;
    return new Promise<number>((resolve, reject) => {
      let writes: Promise<unknown> = Promise.resolve();
      const fail = (error: Error): void => {
        this.#connection.destroy();
        reject(error);
      };
      const onFrame = (frame: GuestFrame): void => {
        if (frame.id !== SESSION_ID) return;
        const { payload } = frame;
        if (frame.type === GuestFrameType.execCredit) {
          if (payload.length >= 4) this.#inputCredit += payload.readUInt32LE(0);
          this.#wakeInput?.();
        } else if (frame.type === GuestFrameType.execOut && payload.length > 1) {
          const data = payload.subarray(1);
          const written = writeTo(payload[0] === 2 ? stderr : stdout, data).then(() =>
            this.#grant(data.length),
          );
          written.catch(fail);
          writes = Promise.all([writes, written]);
          writes.catch(() => undefined); // a failed write has ended the session already
        } else if (frame.type === GuestFrameType.execExit) {
          const status = payload.length >= 4 ? payload.readInt32LE(0) : 255;
          writes.then(() => resolve(status), fail);
        }
      };
      this.#connection.on('data', (chunk: Buffer) => {
        try {
          for (const frame of decoder.push(chunk)) onFrame(frame);
        } catch (error) {
          fail(error instanceof Error ? error : new Error(String(error)));
        }
      });
      this.#connection.on('error', (error: NodeJS.ErrnoException) => {
        if (!LOST_CODES.has(error.code ?? '')) fail(error); // 'close' follows
      });
      const lost =
        'the connection ended before the command did: the VM is gone, or its sfld, or that of a host that it was on since the command was started; see sfstate';
      this.#connection.on('close', () => {
        // A status that came last still waits for its output to be written: that wins.
        writes.then(() => setImmediate(() => reject(new SnowflockError('vm-failed', lost))), reject);
      });
    });
  }

  async #pump(stdin: Readable | null): Promise<void> {
    try {
      if (stdin)
        for await (const chunk of stdin as AsyncIterable<Buffer | string>) {
          let rest = typeof chunk === 'string' ? Buffer.from(chunk) : chunk;
          while (rest.length > 0) {
            while (this.#inputCredit === 0 && !this.#ended.signal.aborted) await this.#moreCredit();
            if (this.#ended.signal.aborted) return;
            const size = Math.min(rest.length, this.#inputCredit, GUEST_PAYLOAD_MAX);
            this.#inputCredit -= size;
            this.#send(GuestFrameType.execIn, rest.subarray(0, size));
            rest = rest.subarray(size);
          }
        }
    } catch (error) {
      if (this.#ended.signal.aborted) return; // our own destroy() of stdin
      this.#connection.destroy(error instanceof Error ? error : new Error(String(error)));
      return;
    }
    if (!this.#ended.signal.aborted) this.#send(GuestFrameType.execIn);
  }

  #moreCredit(): Promise<void> {
    return new Promise((resolve) => (this.#wakeInput = resolve));
  }
}

function writeTo(stream: Writable, data: Buffer): Promise<void> {
  return new Promise((resolve, reject) =>
    stream.write(data, (error) => (error ? reject(stream.errored ?? error) : resolve())),
  );
}
