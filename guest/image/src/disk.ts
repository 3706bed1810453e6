// ext4 disk images without loop mounts.

import { run } from './command.ts';

/** Makes a sparse raw image with an ext4 file system that holds the tree `from`. */
export async function makeDisk(disk: {
  readonly from: string;
  readonly path: string;
  readonly sizeBytes: number;
  readonly signal: AbortSignal | undefined;
}): Promise<void> {
  // Not lazy: a fresh guest would write inode tables in the background, and every clone's overlay with it.
  const options = ['-E', 'lazy_itable_init=0,lazy_journal_init=0', '-m', '0'];
  const size = `${Math.ceil(disk.sizeBytes / 1024)}k`;
  await run('mke2fs', ['-q', '-F', '-t', 'ext4', ...options, '-d', disk.from, disk.path, size], {
    signal: disk.signal,
  });
}
