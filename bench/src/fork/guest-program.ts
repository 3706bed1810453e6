// A program in a guest that is told what to do a line at a time, over an exec session.

import { PassThrough, Writable } from 'node:stream';
import { connectExec, startExec, type ExecHandle } from '@snowflock/sdk';
import type { ControlClient } from '@snowflock/protocol';

const ANSWER_TIMEOUT_MS = 300_000;

export class GuestProgram implements AsyncDisposable {
  readonly #input: PassThrough;
  readonly #handle: ExecHandle;
  readonly #lines: string[] = [];
  #waiting: ((line: string) => void) | null = null;
  #ended: string | null = null;
  #text = '';

  private constructor(input: PassThrough, start: (out: Writable) => ExecHandle) {
    this.#input = input;
    const out = new Writable({
      write: (chunk: Buffer, _encoding, done) => {
        this.#onText(chunk.toString());
        done();
      },
    });
    this.#handle = start(out);
    this.#handle.exited.then(
      (status) => this.#end(`it exited with ${status}`),
      (error: unknown) => this.#end(String(error)),
    );
  }

  static async start(client: ControlClient, vm: string, argv: readonly string[]): Promise<GuestProgram> {
    const connection = await connectExec(client, vm);
    const input = new PassThrough();
    return new GuestProgram(input, (stdout) =>
      startExec(connection, { argv, stdin: input, stdout, stderr: process.stderr }),
    );
  }

  /** Writes a line (or nothing) and resolves with the next line that the program prints. */
  async ask(line: string | null): Promise<string> {
    const answer = new Promise<string>((resolve, reject) => {
      const timer = setTimeout(
        () =>
          reject(
            new Error(`the guest program did not answer '${line ?? ''}' within ${ANSWER_TIMEOUT_MS} ms`),
          ),
        ANSWER_TIMEOUT_MS,
      );
      this.#waiting = (text) => {
        clearTimeout(timer);
        resolve(text);
      };
    });
    if (line !== null) this.#input.write(`${line}\n`);
    this.#deliver();
    if (this.#ended !== null && this.#lines.length === 0) this.#waiting?.(`error ${this.#ended}`);
    const text = await answer;
    if (text.startsWith('error')) throw new Error(`guest program: '${line ?? ''}': ${text}`);
    return text;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#input.end();
    this.#handle.kill(9);
    await this.#handle.exited.catch(() => undefined); // it may have gone with its VM
  }

  /** Whoever waits for an answer is told that none will come. */
  #end(reason: string): void {
    this.#ended = reason;
    this.#waiting?.(`error ${reason}`);
  }

  #onText(text: string): void {
    const parts = (this.#text + text).split('\n');
    this.#text = parts.pop() ?? '';
    this.#lines.push(...parts);
    this.#deliver();
  }

  #deliver(): void {
    const line = this.#waiting ? this.#lines.shift() : undefined;
    if (line === undefined) return;
    const waiting = this.#waiting;
    this.#waiting = null;
    waiting?.(line);
  }
}
