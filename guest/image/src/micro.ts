// The recipe of `micro`: a VM that lives in its initramfs and boots in seconds even under emulation, with a scratch disk on /disk.

import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { BASE_PACKAGES, makeBase } from './base.ts';
import { makeDisk } from './disk.ts';
import { COMMON_APPEND, type Recipe } from './recipe.ts';

const SCRATCH_BYTES = 64 * 1024 * 1024;

export const micro: Recipe = {
  packages: BASE_PACKAGES,
  sources: [],

  async build(context) {
    const { work, output, signal } = context;
    const { result } = await makeBase(context);
    const scratch = join(work, 'scratch');
    await mkdir(scratch);
    await makeDisk({ from: scratch, path: join(output, 'disk.raw'), sizeBytes: SCRATCH_BYTES, signal });
    return { ...result, append: COMMON_APPEND, disk: { path: 'disk.raw', sizeBytes: SCRATCH_BYTES } };
  },
};
