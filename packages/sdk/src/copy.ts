// Files and folders into and out of a VM, over exec: a stream from cat or tar on one side to cat
// or tar on the other. Modes are kept, owners are not. Set-id bits and device nodes never come from a guest to the host.

import { spawn } from 'node:child_process';
import { createReadStream } from 'node:fs';
import { stat } from 'node:fs/promises';
import { basename, resolve } from 'node:path';
import type { Readable } from 'node:stream';
import { type ControlClient, SnowflockError } from '@snowflock/protocol';
import { HostReceiver, LimitedText } from './copy-receive.ts';
import { connectExec, startExec } from './exec.ts';

// In the guest: $1 the destination, $2 the source's base name, $3 its mode.
const RECEIVE_FILE = `d=$1; if [ -d "$d" ]; then d=$d/$2; fi; t=$d.sfcp.$$
if cat >"$t" && chmod "$3" "$t" && mv -f "$t" "$d"; then exit 0; else s=$?; rm -f "$t"; exit $s; fi`;
const RECEIVE_FOLDER = `d=$1; if [ -d "$d" ]; then d=$d/$2; fi; [ -d "$d" ] || mkdir "$d" || exit
exec tar -C "$d" -xpf -`;
// Output: one line, 'd' or 'f MODE', then the tar stream or the contents.
const SEND = `if [ -d "$1" ]; then echo d; exec tar -C "$1" -cf - .
elif [ -f "$1" ]; then echo "f $(stat -c %a "$1")" && exec cat "$1"
elif [ -e "$1" ]; then echo "$1 is neither a file nor a directory" >&2; exit 1
else echo "$1: no such file or directory" >&2; exit 1; fi`;

function guestFailure(vm: string, status: number, stderr: string): SnowflockError {
  return new SnowflockError('bad-request', `VM ${vm}: ${stderr.trim() || `exit status ${status}`}`);
}

interface LocalSource {
  readonly script: string;
  readonly mode: string;
  /** Not before somebody reads: what a process has written when it ends unread is thrown away. */
  readonly open: () => { readonly stream: Readable; readonly done: Promise<void> };
}

async function localSource(path: string): Promise<LocalSource> {
  let info;
  try {
    info = await stat(path);
  } catch (error) {
    const missing = (error as NodeJS.ErrnoException).code === 'ENOENT';
    const why = missing ? `${path}: no such file or directory` : (error as Error).message;
    throw new SnowflockError('bad-request', why, { cause: error });
  }
  const mode = (info.mode & 0o7777).toString(8).padStart(4, '0');
  if (info.isFile())
    return {
      script: RECEIVE_FILE,
      mode,
      open: () => ({ stream: createReadStream(path), done: Promise.resolve() }),
    };
  if (!info.isDirectory())
    throw new SnowflockError('bad-request', `${path} is neither a file nor a directory`);
  return { script: RECEIVE_FOLDER, mode, open: () => openTar(path) };
}

function openTar(path: string): { stream: Readable; done: Promise<void> } {
  const tar = spawn('tar', ['-C', path, '-cf', '-', '.'], { stdio: ['ignore', 'pipe', 'pipe'] });
  const errors = new LimitedText(tar.stderr);
  const done = new Promise<void>((finished, reject) => {
    tar.once('error', reject);
    tar.once('close', (status) =>
      status === 0 || status === null
        ? finished()
        : reject(
            new SnowflockError('bad-request', `${path}: ${errors.text || `tar: exit status ${status}`}`),
          ),
    );
  });
  done.catch(() => undefined); // awaited after the guest has answered
  return { stream: tar.stdout, done };
}

export async function copyToVm(
  client: ControlClient,
  options: {
    readonly from: string;
    readonly vm: string;
    readonly to: string;
    readonly signal?: AbortSignal | undefined;
  },
): Promise<void> {
  const { from, vm, to, signal } = options;
  const source = await localSource(from);
  const connection = await connectExec(client, vm, { signal });
  const { stream, done } = source.open();
  try {
    const errors = new LimitedText();
    const argv = ['sh', '-c', source.script, 'sh', to, basename(resolve(from)), source.mode];
    const exec = { argv, stdin: stream, stdout: errors.sink, stderr: errors.sink, signal };
    const status = await startExec(connection, exec).exited;
    if (status !== 0) throw guestFailure(vm, status, errors.text);
    await done;
  } finally {
    stream.destroy();
  }
}

export async function copyFromVm(
  client: ControlClient,
  options: {
    readonly vm: string;
    readonly from: string;
    readonly to: string;
    readonly signal?: AbortSignal | undefined;
  },
): Promise<void> {
  const { vm, from, to, signal } = options;
  const connection = await connectExec(client, vm, { signal });
  const errors = new LimitedText();
  const receiver = new HostReceiver({ to, name: basename(resolve('/', from)) });
  try {
    const argv = ['sh', '-c', SEND, 'sh', from];
    const exec = { argv, stdin: null, stdout: receiver.sink, stderr: errors.sink, signal };
    const status = await startExec(connection, exec).exited;
    if (status !== 0) throw guestFailure(vm, status, errors.text);
    await receiver.finish();
  } finally {
    await receiver.discard();
  }
}
