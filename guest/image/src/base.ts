// What all images have in common: kernel and initramfs.

import { rename, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { buildGuestTools } from './guest-tools.ts';
import { BUSYBOX_PACKAGE, buildInitramfs } from './initramfs.ts';
import { fetchKernel, KERNEL_PACKAGE } from './kernel.ts';
import type { RecipeContext, RecipeResult } from './recipe.ts';

export const BASE_PACKAGES = [KERNEL_PACKAGE, BUSYBOX_PACKAGE] as const;

export interface Base {
  /** Directory of the compiled guest programs. */
  readonly tools: string;
  readonly result: Pick<RecipeResult, 'kernel' | 'initrd' | 'packages'>;
}

/** Puts `vmlinux` and `initrd` into the output. */
export async function makeBase({ work, output, signal, progress }: RecipeContext): Promise<Base> {
  progress('fetching the kernel');
  const kernel = await fetchKernel(work, signal);
  progress('compiling the guest tools');
  const tools = join(work, 'tools');
  await buildGuestTools(tools, signal);
  await rename(kernel.path, join(output, 'vmlinux'));
  await writeFile(join(output, 'initrd'), await buildInitramfs(tools, kernel, signal));
  const packages = { [kernel.packageName]: kernel.version };
  return { tools, result: { kernel: 'vmlinux', initrd: 'initrd', packages } };
}
