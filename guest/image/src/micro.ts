// The recipe of `micro`: a VM that lives in its initramfs and boots in seconds even under emulation, with a scratch disk on /disk.

import { mkdir, rename, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { makeDisk } from './disk.ts';
import { buildGuestTools } from './guest-tools.ts';
import { BUSYBOX_PACKAGE, buildInitramfs } from './initramfs.ts';
import { fetchKernel, KERNEL_PACKAGE } from './kernel.ts';
import { COMMON_APPEND, type Recipe } from './recipe.ts';

const SCRATCH_BYTES = 64 * 1024 * 1024;

export const micro: Recipe = {
  packages: [KERNEL_PACKAGE, BUSYBOX_PACKAGE],

  async build({ work, output, signal, progress }) {
    progress('fetching the kernel');
    const kernel = await fetchKernel(work, signal);
    progress('compiling the guest tools');
    const tools = join(work, 'tools');
    await buildGuestTools(tools, signal);
    progress('packing the initramfs');
    await rename(kernel.path, join(output, 'vmlinux'));
    await writeFile(join(output, 'initrd'), await buildInitramfs(tools, kernel, signal));
    const scratch = join(work, 'scratch');
    await mkdir(scratch);
    await makeDisk({ from: scratch, path: join(output, 'disk.raw'), sizeBytes: SCRATCH_BYTES, signal });
    return {
      kernel: 'vmlinux',
      initrd: 'initrd',
      append: COMMON_APPEND,
      disk: { path: 'disk.raw', sizeBytes: SCRATCH_BYTES },
      packages: { [kernel.packageName]: kernel.version },
    };
  },
};
