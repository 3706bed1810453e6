// What becomes of images that a newer build has replaced: they go, unless somebody may still need them.
//
// Invariant: an image that a process has open, or names in its arguments, stays. A running VM has the disk of its image
// open, and it will be opened again by that path at each fork (as the backing file of a new overlay).

import { readdir, readFile, readlink, rename, rm } from 'node:fs/promises';
import { basename, join } from 'node:path';
import type { ImageName } from './manifest.ts';
import { listImages, storeDirectory } from './store.ts';

/** Of each name: the newest, and the one before it, which who is just starting a VM may have looked up. */
const KEPT = 2;

/** Removes the older images of that name that nobody uses. Answers their directories. Call it as the only builder of that name. */
export async function removeOldImages(name: ImageName): Promise<string[]> {
  const old = (await listImages()).filter((image) => image.name === name).slice(KEPT);
  if (old.length === 0 || process.getuid?.() !== 0) return []; // others may not look into root's processes
  const used = await pathsInUse();
  const unused = old
    .map((image) => image.directory)
    .filter((directory) => !used.some((text) => text.includes(`${directory}/`)));
  for (const directory of unused) {
    // Out of sight first: what has no leading dot is a whole image. A crash leaves it to the next builder.
    const hidden = join(storeDirectory(), `.tmp-${name}-old-${basename(directory)}`);
    await rename(directory, hidden);
    await rm(hidden, { recursive: true, force: true });
  }
  return unused;
}

/** Arguments and open files of all processes of this machine. */
async function pathsInUse(): Promise<string[]> {
  const found: string[] = [];
  for (const pid of (await readdir('/proc')).filter((entry) => /^\d+$/.test(entry))) {
    found.push(await unlessGone(readFile(`/proc/${pid}/cmdline`, 'utf8'), ''));
    for (const fd of await unlessGone(readdir(`/proc/${pid}/fd`), []))
      found.push(await unlessGone(readlink(`/proc/${pid}/fd/${fd}`), ''));
  }
  return found;
}

/** Just ended; or not of this system, when even root may not look into it. SnowFlock's VMs are root's. */
const NOT_OURS = new Set(['ENOENT', 'ESRCH', 'EACCES', 'EPERM']);

async function unlessGone<T>(looked: Promise<T>, nothing: T): Promise<T> {
  try {
    return await looked;
  } catch (error) {
    if (NOT_OURS.has((error as NodeJS.ErrnoException).code ?? '')) return nothing;
    throw error;
  }
}
