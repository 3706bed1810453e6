// Mounting and unmounting the memtap's file system.
//
// The kernel's rule: whoever holds /dev/fuse open serves the mount. We open it, let mount(8) make the mount with our
// descriptor, and read requests from then on. When the descriptor's last holder dies, every waiting reader fails.

import { spawn } from 'node:child_process';
import { openSync, readFileSync, realpathSync, writeFileSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { SnowflockError } from '@snowflock/protocol/pages';
import { runBounded } from '../../run-bounded.ts';
import { FUSE_MAX_READ_BYTES } from './protocol.ts';

/** mount(8) only makes a system call; this is for a machine that swaps. */
const MOUNT_TIMEOUT_MS = 5000;

export function openFuseDevice(): number {
  try {
    return openSync('/dev/fuse', 'r+');
  } catch (error) {
    const { message } = error as Error;
    throw new SnowflockError(
      'bad-config',
      `cannot open /dev/fuse: ${message}. Load the kernel's fuse module (modprobe fuse) and run as root.`,
      { cause: error },
    );
  }
}

export async function mountFuse(options: {
  readonly fuseFd: number;
  readonly directory: string;
}): Promise<void> {
  const flags = [
    'rootmode=40000',
    'user_id=0',
    'group_id=0',
    `max_read=${FUSE_MAX_READ_BYTES}`,
    'allow_other',
    'nosuid',
    'nodev',
  ];
  const args = [
    '-i',
    '-t',
    'fuse',
    '-o',
    ['fd=3', ...flags].join(','),
    'snowflock-memtap',
    options.directory,
  ];
  const child = spawn('mount', args, { stdio: ['ignore', 'ignore', 'pipe', options.fuseFd] });
  let stderr = '';
  child.stderr?.on('data', (chunk: Buffer) => (stderr += chunk.toString('utf8')));
  const timer = setTimeout(() => child.kill('SIGKILL'), MOUNT_TIMEOUT_MS);
  const code = await new Promise<number | null>((resolve, reject) => {
    child.on('error', reject);
    child.on('close', resolve);
  });
  clearTimeout(timer);
  if (code !== 0)
    throw new SnowflockError(
      'bad-config',
      `cannot mount ${options.directory}: ${stderr.trim() || `mount ended with ${code}`}`,
    );
}

/** Sets the kernel's own read-ahead for this mount. */
export function setKernelReadAhead(directory: string, readAheadKb: number): void {
  writeFileSync(`/sys/class/bdi/${deviceOf(directory)}/read_ahead_kb`, String(readAheadKb));
}

/**
 * `major:minor` of the file system mounted there, without asking it: a server that waits for its own mount when it is killed
 * waits for ever, holds its mount, and with it every process that uses it.
 */
function deviceOf(directory: string): string {
  const path = join(realpathSync(dirname(directory)), basename(directory));
  // proc(5): id, parent, major:minor, root, mount point, ...; blanks in paths are \040 and the like
  const mounts = readFileSync('/proc/self/mountinfo', 'utf8').split('\n');
  const here = mounts
    .map((line) => line.split(' '))
    .findLast((fields) => unescapePath(fields[4] ?? '') === path);
  if (here?.[2] === undefined) throw new SnowflockError('internal', `nothing is mounted on ${directory}`);
  return here[2];
}

function unescapePath(text: string): string {
  return text.replace(/\\([0-7]{3})/g, (_match, octal: string) =>
    String.fromCharCode(Number.parseInt(octal, 8)),
  );
}

/** Ends the mount, whoever uses it: first by force (waiting readers fail), then at least out of the name space. */
export async function unmountFuse(
  directory: string,
  options: { readonly timeoutMs: number },
): Promise<boolean> {
  const forced = await runBounded('umount', ['-f', directory], options);
  if (forced.code === 0) return true;
  const lazy = await runBounded('umount', ['-l', directory], options);
  return lazy.code === 0;
}
