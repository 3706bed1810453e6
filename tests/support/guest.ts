// A VM as a test sees it: commands run in it through an sfld, each with a deadline.

import { PassThrough, Writable } from 'node:stream';
import { connectExec, execInVm, startExec, type ExecHandle } from '@snowflock/sdk';
import type { ControlClient } from '@snowflock/protocol';
import { eventually, patient, within, withinExactly } from './deadline.ts';

/** For a command that only looks at something; a guest under emulation on a busy machine is slow. */
const COMMAND_MS = 45_000;
/** The test programs of the images. */
export const PROBES = '/usr/lib/snowflock';

export interface Outcome {
  readonly status: number;
  readonly out: string;
  readonly err: string;
}

export interface GuestOptions {
  readonly input?: string | Buffer;
  readonly deadlineMs?: number;
}

export class Guest {
  readonly clusterid: number;
  readonly vmid: number;
  readonly #client: () => ControlClient;

  /** `client`: of the sfld that is asked; any host's will do. */
  constructor(client: () => ControlClient, ids: { readonly clusterid: number; readonly vmid: number }) {
    this.#client = client;
    this.clusterid = ids.clusterid;
    this.vmid = ids.vmid;
  }

  /** `clusterid:vmid`. */
  get name(): string {
    return `${this.clusterid}:${this.vmid}`;
  }

  get ip(): string {
    return `10.0.0.${this.vmid + 1}`;
  }

  /** Another VM of the same cluster. */
  sibling(vmid: number): Guest {
    return new Guest(this.#client, { clusterid: this.clusterid, vmid });
  }

  /** Runs a command to its end; any exit status is an answer. */
  async exec(argv: readonly string[], options: GuestOptions = {}): Promise<Outcome> {
    const { input } = options;
    const deadlineMs = patient(options.deadlineMs ?? COMMAND_MS);
    const late = AbortSignal.timeout(deadlineMs);
    const result = await execInVm(this.#client(), this.name, argv, {
      input,
      waitMs: deadlineMs,
      signal: late,
    }).catch((error: unknown) => {
      if (!late.aborted) throw error;
      throw new Error(`VM ${this.name}: ${argv.join(' ')}: not within ${deadlineMs} ms`, { cause: error });
    });
    return { status: result.status, out: result.stdout.toString(), err: result.stderr.toString() };
  }

  /** What a command prints, without the last newline; throws unless its status is 0. */
  async run(argv: readonly string[], options: GuestOptions = {}): Promise<string> {
    const { status, out, err } = await this.exec(argv, options);
    if (status !== 0) throw new Error(`VM ${this.name}: ${argv.join(' ')}: status ${status}: ${err || out}`);
    return out.replace(/\n$/, '');
  }

  sh(script: string, options: GuestOptions = {}): Promise<string> {
    return this.run(['sh', '-c', script], options);
  }

  /** The contents of a file, as soon as it has any. */
  file(path: string, deadlineMs = COMMAND_MS): Promise<string> {
    return eventually(deadlineMs, `${path} in VM ${this.name}`, async () => {
      const contents = await this.run(['cat', path]);
      if (contents === '') throw new Error(`${path} is empty`);
      return contents;
    });
  }

  /** What the kernel says about its disk and the file system on it; empty if all is well. */
  diskErrors(): Promise<string> {
    return this.sh('dmesg | grep -i -E "i/o error|ext4-fs error"; true');
  }

  async put(path: string, contents: Buffer | string, mode = '755'): Promise<void> {
    const script = 'cat > "$1.new" && chmod "$2" "$1.new" && mv "$1.new" "$1"';
    await this.run(['sh', '-c', script, 'sh', path, mode], { input: Buffer.from(contents) });
  }

  /** Starts a command that is told what to do a line at a time. The caller ends it. */
  async start(argv: readonly string[]): Promise<GuestProgram> {
    const connection = await connectExec(this.#client(), this.name, { waitMs: COMMAND_MS });
    return new GuestProgram(`${argv.join(' ')} in VM ${this.name}`, (streams) =>
      startExec(connection, { argv, ...streams }),
    );
  }
}

/** A running command in a guest: lines in, lines out. */
export class GuestProgram implements AsyncDisposable {
  /** Exit status; rejects when the VM or the connection ends first. */
  readonly exited: Promise<number>;
  readonly #what: string;
  readonly #input = new PassThrough();
  readonly #handle: ExecHandle;
  readonly #lines: string[] = [];
  #text = '';
  #ended: string | undefined;
  #wake: () => void = () => undefined;

  constructor(
    what: string,
    start: (streams: { stdin: PassThrough; stdout: Writable; stderr: Writable }) => ExecHandle,
  ) {
    this.#what = what;
    const sink = (): Writable =>
      new Writable({
        write: (chunk: Buffer, _encoding, done) => {
          this.#onText(chunk.toString());
          done();
        },
      });
    this.#handle = start({ stdin: this.#input, stdout: sink(), stderr: sink() });
    this.exited = this.#handle.exited;
    const onEnd = (how: unknown): void => {
      this.#ended = String(how);
      this.#wake();
    };
    this.exited.then((status) => onEnd(`status ${status}`), onEnd);
  }

  /** The next line that it prints, on either stream. */
  async line(deadlineMs = COMMAND_MS): Promise<string> {
    const end = performance.now() + patient(deadlineMs);
    for (;;) {
      const line = this.#lines.shift();
      if (line !== undefined) return line;
      if (this.#ended !== undefined)
        throw new Error(`${this.#what} ended with ${this.#ended}; no more lines`);
      const more = new Promise<void>((resolve) => (this.#wake = resolve));
      await withinExactly(Math.max(0, end - performance.now()), `a line of ${this.#what}`, more);
    }
  }

  async ask(line: string, deadlineMs = COMMAND_MS): Promise<string> {
    this.#input.write(`${line}\n`);
    return this.line(deadlineMs);
  }

  kill(signal: number): void {
    this.#handle.kill(signal);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#input.end();
    this.#handle.kill(9);
    await within(COMMAND_MS, `the end of ${this.#what}`, this.exited).catch(() => undefined); // it may have gone with its VM
  }

  #onText(text: string): void {
    const lines = (this.#text + text).split('\n');
    this.#text = lines.pop() ?? '';
    this.#lines.push(...lines);
    this.#wake();
  }
}
