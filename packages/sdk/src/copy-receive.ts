// The host's end of a copy out of a VM: reads the header line, then writes a file or feeds a tar.

import { spawn, type ChildProcess } from 'node:child_process';
import { createWriteStream, type WriteStream } from 'node:fs';
import { chmod, mkdir, rename, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { Writable, type Readable } from 'node:stream';
import { SnowflockError } from '@snowflock/protocol';

const TEXT_MAX = 4096;
const HEADER_MAX_BYTES = 64;

/** The beginning of what a command says on standard error. */
export class LimitedText {
  text = '';
  readonly sink: Writable;

  constructor(source?: Readable) {
    this.sink = new Writable({
      write: (chunk: Buffer, _encoding, done): void => {
        if (this.text.length < TEXT_MAX) this.text += chunk.toString('utf8');
        done();
      },
    });
    source?.pipe(this.sink);
  }
}

async function isFolder(path: string): Promise<boolean> {
  try {
    return (await stat(path)).isDirectory();
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return false;
    throw error;
  }
}

/** Nothing that gives rights on the host comes from a guest. */
const HARMLESS = (folder: string): string[] => [
  'find', folder, '-xdev', '(', '-type', 'b', '-o', '-type', 'c', ')', '-delete', '-o', '-type', 'f', '-perm', '/6000', '-exec', 'chmod', 'ug-s', '{}', '+',
]; // prettier-ignore

type Target =
  | {
      readonly kind: 'file';
      readonly path: string;
      readonly partial: string;
      readonly mode: number;
      readonly stream: WriteStream;
    }
  | {
      readonly kind: 'folder';
      readonly path: string;
      readonly tar: ChildProcess;
      readonly errors: LimitedText;
      readonly closed: Promise<number | null>;
    };

export class HostReceiver {
  readonly sink: Writable;
  readonly #to: string;
  readonly #name: string;
  #header = Buffer.alloc(0);
  #target: Target | undefined;
  #finished = false;

  constructor(options: { readonly to: string; readonly name: string }) {
    this.#to = options.to;
    this.#name = options.name;
    this.sink = new Writable({
      write: (chunk: Buffer, _encoding, done): void => {
        this.#take(chunk).then(() => done(), done);
      },
    });
    this.sink.on('error', () => undefined); // the writer is told through its callback
  }

  async #take(chunk: Buffer): Promise<void> {
    if (this.#target) return this.#write(this.#target, chunk);
    this.#header = Buffer.concat([this.#header, chunk]);
    const end = this.#header.indexOf(10);
    if (end < 0 && this.#header.length < HEADER_MAX_BYTES) return;
    const match = /^(?:d|f ([0-7]{1,4}))$/.exec(this.#header.toString('latin1', 0, end));
    if (!match) throw new SnowflockError('unavailable', 'the guest did not say what it sends');
    this.#target = await this.#open(match[1]);
    await this.#write(this.#target, this.#header.subarray(end + 1));
  }

  async #open(mode: string | undefined): Promise<Target> {
    const path = (await isFolder(this.#to)) ? join(this.#to, this.#name) : this.#to;
    if (mode !== undefined) {
      const partial = `${path}.sfcp.${process.pid}`;
      const stream = createWriteStream(partial, { mode: 0o600 });
      stream.on('error', () => undefined); // reported by the write that fails
      return { kind: 'file', path, partial, mode: parseInt(mode, 8) & 0o777, stream };
    }
    if (!(await isFolder(path))) await mkdir(path);
    const tar = spawn('tar', ['-C', path, '--no-same-owner', '-xpf', '-'], {
      stdio: ['pipe', 'ignore', 'pipe'],
    });
    const closed = new Promise<number | null>((resolve, reject) =>
      tar.once('error', reject).once('close', resolve),
    );
    closed.catch(() => undefined); // awaited by finish and discard
    tar.stdin?.on('error', () => undefined); // its exit status tells
    return { kind: 'folder', path, tar, errors: new LimitedText(tar.stderr ?? undefined), closed };
  }

  #write(target: Target, data: Buffer): Promise<void> {
    const stream = target.kind === 'file' ? target.stream : target.tar.stdin;
    return new Promise((resolve, reject) => {
      if (!stream || data.length === 0) return resolve();
      stream.write(data, (error) =>
        error && target.kind === 'file' ? reject(stream.errored ?? error) : resolve(),
      );
    });
  }

  /** All data is there: put it in place. */
  async finish(): Promise<void> {
    const target = this.#target;
    if (!target) throw new SnowflockError('unavailable', 'the guest sent nothing');
    if (target.kind === 'file') {
      await new Promise<void>((resolve, reject) => target.stream.once('error', reject).end(() => resolve()));
      await chmod(target.partial, target.mode);
      await rename(target.partial, target.path);
    } else {
      target.tar.stdin?.end();
      const status = await target.closed;
      if (status !== 0)
        throw new SnowflockError(
          'bad-request',
          `${target.path}: ${target.errors.text.trim() || 'tar failed'}`,
        );
      await harmless(target.path);
    }
    this.#finished = true;
  }

  /** After a failure: no half-written file stays. Does nothing after finish(). */
  async discard(): Promise<void> {
    const target = this.#target;
    if (!target || this.#finished) return;
    if (target.kind === 'file') {
      target.stream.destroy();
      await rm(target.partial, { force: true });
    } else {
      target.tar.kill('SIGKILL');
      await target.closed.catch(() => undefined); // it could not even be started
      await harmless(target.path);
    }
  }
}

function harmless(folder: string): Promise<void> {
  const [file = 'find', ...args] = HARMLESS(folder);
  const find = spawn(file, args, { stdio: ['ignore', 'ignore', 'inherit'] });
  return new Promise((resolve, reject) => {
    find
      .once('error', reject)
      .once('close', (status) =>
        status === 0
          ? resolve()
          : reject(new SnowflockError('internal', `${folder}: could not be checked for set-id files`)),
      );
  });
}
