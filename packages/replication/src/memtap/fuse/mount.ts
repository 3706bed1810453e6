// Mounting and unmounting the memtap's file system.
//
// The kernel's rule: whoever holds /dev/fuse open serves the mount. We open it, let mount(8) make the mount with our
// descriptor, and read requests from then on. When the descriptor's last holder dies, every waiting reader fails.

import { spawn } from 'node:child_process';
import { openSync } from 'node:fs';
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
