// A command in a guest, run to its end for what it prints.

import { Readable, Writable } from 'node:stream';
import { type ControlClient, SnowflockError } from '@snowflock/protocol';
import { connectExec, startExec } from './exec.ts';

export interface ExecResult {
  /** Exit status, or 128 + signal. */
  readonly status: number;
  readonly stdout: Buffer;
  readonly stderr: Buffer;
}

/** Output that a capture keeps at most, of each stream. */
const CAPTURE_MAX_BYTES = 64 << 20;

class Capture extends Writable {
  readonly #chunks: Buffer[] = [];
  #sizeBytes = 0;

  override _write(chunk: Buffer, _encoding: BufferEncoding, done: (error?: Error | null) => void): void {
    this.#sizeBytes += chunk.length;
    if (this.#sizeBytes > CAPTURE_MAX_BYTES)
      return done(
        new SnowflockError('bad-request', `the command printed more than ${CAPTURE_MAX_BYTES} bytes`),
      );
    this.#chunks.push(chunk);
    done();
  }

  get bytes(): Buffer {
    return Buffer.concat(this.#chunks);
  }
}

/** Runs a command in a guest to its end and gives what it printed; for programs. Any exit status is an answer. */
export async function execInVm(
  client: ControlClient,
  vm: string,
  argv: readonly string[],
  options: {
    readonly input?: string | Buffer | undefined;
    readonly waitMs?: number | undefined;
    readonly signal?: AbortSignal | undefined;
  } = {},
): Promise<ExecResult> {
  const stdout = new Capture();
  const stderr = new Capture();
  const stdin = options.input === undefined ? null : Readable.from([Buffer.from(options.input)]);
  const { waitMs, signal } = options;
  const connection = await connectExec(client, vm, { waitMs, signal });
  const status = await startExec(connection, { argv, stdin, stdout, stderr, signal }).exited;
  return { status, stdout: stdout.bytes, stderr: stderr.bytes };
}
