// The frozen disk: a chain of images that nobody writes any more (the former overlay is a read-only backing file of the
// running master VM), read through Debian's qemu-nbd over a unix socket.
//
//   starting --socket answers--> serving --qemu-nbd exits--> failed (every read rejects)
//
// Owns the qemu-nbd process, its socket file and our connection. The process is started through setpriv so that the
// kernel kills it with us, whatever way we die. It starts with the first read, or a second after the fork.

import { spawn, type ChildProcess } from 'node:child_process';
import { rmSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { PAGE_BYTES, SnowflockError, toSnowflockError } from '@snowflock/protocol/pages';
import { NbdClient } from './nbd-client.ts';

export interface FrozenDiskOptions {
  readonly format: 'qcow2' | 'raw';
  readonly path: string;
  readonly sizeBytes: number;
  /** Where qemu-nbd listens. */
  readonly socketPath: string;
}

/** qemu-nbd listens within tens of milliseconds; a loaded machine needs more. */
const START_TIMEOUT_MS = 10_000;
const POLL_MS = 5;
/** Starting a process takes 10 ms of CPU: not while the clones of this fork start, unless one of them needs its disk at once. */
const START_DELAY_MS = 1000;
const CLOSED = 'closed';

export class FrozenDisk {
  readonly pageCount: number;
  readonly #options: FrozenDiskOptions;
  readonly #client: Promise<NbdClient>;
  readonly #wanted = Promise.withResolvers<void>();
  #child: ChildProcess | undefined;
  #exit: string | undefined;

  private constructor(options: FrozenDiskOptions) {
    this.#options = options;
    this.pageCount = Math.ceil(options.sizeBytes / PAGE_BYTES);
    this.#client = this.#connect();
    // whoever reads sees the failure; nobody may ever read, and then it may be closed before it was started
    this.#client.catch((error: unknown) => {
      if (this.#exit !== CLOSED) console.error('memserver:', toSnowflockError(error).message);
    });
  }

  /** Starts the disk server in the background. */
  static start(options: FrozenDiskOptions): FrozenDisk {
    return new FrozenDisk(options);
  }

  /** Reads whole pages; what lies behind the end of the disk is zero. */
  async read(
    target: Buffer,
    options: { offset: number; firstPage: number; pageCount: number },
  ): Promise<void> {
    this.#wanted.resolve();
    const client = await this.#client;
    const position = options.firstPage * PAGE_BYTES;
    const wanted = options.pageCount * PAGE_BYTES;
    const length = Math.min(wanted, client.sizeBytes - position);
    if (length < wanted) target.fill(0, options.offset + Math.max(0, length), options.offset + wanted);
    if (length > 0) await client.read(target, { offset: options.offset, length, position });
  }

  async close(): Promise<void> {
    // before the client: a server that never came up ends the wait for it
    this.#exit ??= CLOSED;
    this.#wanted.resolve();
    this.#child?.kill('SIGKILL');
    const client = await this.#client.catch(() => undefined);
    client?.close();
    rmSync(this.#options.socketPath, { force: true });
  }

  #spawn(): void {
    rmSync(this.#options.socketPath, { force: true });
    this.#child = spawn('setpriv', qemuNbdArgs(this.#options), { stdio: ['ignore', 'ignore', 'inherit'] });
    this.#child.on('error', (error) => (this.#exit ??= `qemu-nbd could not be started: ${error.message}`));
    this.#child.on(
      'exit',
      (code, signal) => (this.#exit ??= `qemu-nbd ended (${signal ?? code ?? 'unknown'})`),
    );
  }

  async #connect(): Promise<NbdClient> {
    await Promise.race([this.#wanted.promise, sleep(START_DELAY_MS)]);
    if (this.#exit === undefined) this.#spawn();
    const deadline = Date.now() + START_TIMEOUT_MS;
    for (;;) {
      if (this.#exit !== undefined)
        throw new SnowflockError('unavailable', `frozen disk ${this.#options.path}: ${this.#exit}`);
      try {
        return await NbdClient.connect({ path: this.#options.socketPath, timeoutMs: START_TIMEOUT_MS });
      } catch (error) {
        if (Date.now() > deadline)
          throw new SnowflockError(
            'unavailable',
            `frozen disk ${this.#options.path}: qemu-nbd does not answer`,
            { cause: error },
          );
        await sleep(POLL_MS);
      }
    }
  }
}

/** The argument vector behind setpriv. force-share: the image is a backing file of a running QEMU, which is fine to read. */
export function qemuNbdArgs(options: FrozenDiskOptions): string[] {
  const path = options.path.replaceAll(',', ',,');
  const image = `driver=${options.format},file.driver=file,file.filename=${path},force-share=on`;
  const serve = ['--read-only', '--persistent', '--shared=4', `--socket=${options.socketPath}`];
  return ['--pdeathsig', 'KILL', 'qemu-nbd', ...serve, '--image-opts', image];
}
