// Running the tools that images are made with: one way to start them, to stop them with everything they started, and to say what went wrong.

import { spawn } from 'node:child_process';
import { SnowflockError } from '@snowflock/protocol';

/** Kept of a tool's output for its error message, in characters; the end is where the reason stands. */
const OUTPUT_KEPT = 4000;
/** How long a stopped tool may take to clean up before it is killed. */
const STOP_GRACE_MS = 5000;

/** Debian packages that provide the tools, for the error message. */
const PACKAGE_OF: Readonly<Record<string, string>> = {
  'apt-get': 'apt',
  'apt-cache': 'apt',
  'dpkg-deb': 'dpkg',
  gcc: 'gcc',
  lz4: 'lz4',
  make: 'make',
  mke2fs: 'e2fsprogs',
  mmdebstrap: 'mmdebstrap',
  xz: 'xz-utils',
  zstd: 'zstd',
};

export interface RunOptions {
  readonly cwd?: string;
  readonly env?: Readonly<Record<string, string>>;
  readonly signal?: AbortSignal | undefined;
  /** Called with each line of output. */
  readonly onLine?: (line: string) => void;
}

/** Runs a tool and returns its stdout. Throws 'unavailable' for a missing tool or a full disk, 'internal' for any other failure. */
export async function run(tool: string, args: readonly string[], options: RunOptions = {}): Promise<string> {
  options.signal?.throwIfAborted();
  const env = { ...process.env, LC_ALL: 'C', DEBIAN_FRONTEND: 'noninteractive', ...options.env };
  // A process group of its own: stopping the tool must also stop what it started.
  const child = spawn(tool, [...args], {
    cwd: options.cwd,
    env,
    detached: true,
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  const killGroup = (signal: NodeJS.Signals): void => {
    if (child.pid !== undefined && child.exitCode === null && child.signalCode === null)
      process.kill(-child.pid, signal);
  };
  let killer: NodeJS.Timeout | undefined;
  const stop = (): void => {
    killGroup('SIGTERM');
    killer = setTimeout(() => killGroup('SIGKILL'), STOP_GRACE_MS);
  };
  options.signal?.addEventListener('abort', stop, { once: true });
  const out: Buffer[] = [];
  let tail = '';
  const onText = (chunk: Buffer): void => {
    const text = chunk.toString();
    tail = (tail + text).slice(-OUTPUT_KEPT);
    for (const line of text.split('\n')) if (line.trim() !== '') options.onLine?.(line.trimEnd());
  };
  child.stdout.on('data', (chunk: Buffer) => {
    out.push(chunk);
    onText(chunk);
  });
  child.stderr.on('data', onText);
  try {
    const status = await new Promise<string>((resolve, reject) => {
      child.once('error', reject);
      child.once('close', (code, signal) =>
        resolve(code === null ? `signal ${signal ?? '?'}` : `status ${code}`),
      );
    });
    options.signal?.throwIfAborted();
    if (status !== 'status 0') throw failure(tool, status, tail);
    return Buffer.concat(out).toString();
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === 'ENOENT')
      throw new SnowflockError(
        'unavailable',
        `the tool '${tool}' is missing: apt-get install ${PACKAGE_OF[tool] ?? tool}`,
        {
          cause: error,
        },
      );
    throw error;
  } finally {
    clearTimeout(killer);
    options.signal?.removeEventListener('abort', stop);
  }
}

function failure(tool: string, status: string, output: string): SnowflockError {
  const reason = output.trim().split('\n').slice(-12).join('\n');
  const full = /no space left on device|could not allocate|disk full/i.test(output);
  return new SnowflockError(
    full ? 'unavailable' : 'internal',
    full ? `${tool} ran out of disk space:\n${reason}` : `${tool} failed (${status}):\n${reason}`,
  );
}
