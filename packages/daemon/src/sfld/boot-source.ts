// From the disk_image of a seed configuration to what a VM boots from and which disk it has.

import { isAbsolute } from 'node:path';
import { findImage } from '@snowflock/image';
import type { VmShape } from '@snowflock/protocol';
import { diskInfo, type DiskInfo } from '@snowflock/vm';

/** Kernel and initrd for disk images that come from outside: the packaged ones. */
const PACKAGED_IMAGE = 'micro';

export interface BootSource {
  readonly kernel: string;
  readonly initrd: string;
  readonly append: string;
  readonly disk: ({ readonly path: string } & DiskInfo) | null;
}

export async function bootSource(shape: VmShape): Promise<BootSource> {
  if (isAbsolute(shape.diskImage)) {
    const disk = { path: shape.diskImage, ...(await diskInfo(shape.diskImage)) };
    const { kernel, initrd, append } = await findImage(PACKAGED_IMAGE);
    return { kernel, initrd, append: `${append} snowflock.root=/dev/vda`, disk };
  }
  const { kernel, initrd, append, disk } = await findImage(shape.diskImage);
  return { kernel, initrd, append, disk: disk ? { path: disk.path, ...(await diskInfo(disk.path)) } : null };
}
