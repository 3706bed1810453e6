// The image store: one directory per image, <name>-<hash>, complete or not there at all.
//
// Invariants: a directory without a leading dot is a whole image; builders of one name take turns (lock file); what a crashed builder left
// behind begins with '.tmp-<name>-' and is removed by the next builder of that name.

import { mkdir, readdir, rename, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { SnowflockError } from '@snowflock/protocol';
import { withLock } from './lock.ts';
import { IMAGE_NAMES, readManifest, type ImageManifest, type ImageName } from './manifest.ts';

export function storeDirectory(): string {
  return process.env['SNOWFLOCK_IMAGES'] ?? '/var/cache/snowflock/images';
}

async function entries(): Promise<string[]> {
  try {
    return await readdir(storeDirectory());
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === 'ENOENT') return [];
    throw error;
  }
}

const nameOf = (entry: string): ImageName | undefined =>
  IMAGE_NAMES.find((name) => entry.startsWith(`${name}-`));

/** All images of the store, newest first. */
export async function listImages(): Promise<ImageManifest[]> {
  const images: ImageManifest[] = [];
  for (const entry of await entries())
    if (nameOf(entry)) images.push(await readManifest(join(storeDirectory(), entry)));
  return images.sort((a, b) => b.createdAt.localeCompare(a.createdAt));
}

/** The newest image of that name. Throws 'no-such-image'. */
export async function findImage(name: string): Promise<ImageManifest> {
  const image = (await listImages()).find((candidate) => candidate.name === name);
  if (image) return image;
  const known = IMAGE_NAMES.some((candidate) => candidate === name);
  throw new SnowflockError(
    'no-such-image',
    known
      ? `image '${name}' has not been built on this host; build it: snowflock image build ${name}`
      : `there is no image '${name}'; there are ${IMAGE_NAMES.join(', ')}`,
  );
}

/** Runs `build` in an empty temporary directory of the store, alone among the builders of that image; the directory is gone afterwards. */
export async function inWorkDirectory<T>(
  name: ImageName,
  signal: AbortSignal | undefined,
  build: (directory: string) => Promise<T>,
): Promise<T> {
  const store = storeDirectory();
  await mkdir(store, { recursive: true });
  return withLock(join(store, `.${name}.lock`), { signal }, async () => {
    const prefix = `.tmp-${name}-`;
    for (const left of await entries())
      if (left.startsWith(prefix)) await rm(join(store, left), { recursive: true, force: true });
    const work = join(store, `${prefix}${process.pid}`);
    await mkdir(work);
    try {
      return await build(work);
    } finally {
      await rm(work, { recursive: true, force: true });
    }
  });
}

/** Moves a finished image (manifest included) into its place; an older one of the same hash makes way. */
export async function publish(from: string, finalDirectory: string): Promise<void> {
  await rm(finalDirectory, { recursive: true, force: true });
  await rename(from, finalDirectory);
}

export function imageDirectory(name: ImageName, hash: string): string {
  return join(storeDirectory(), `${name}-${hash}`);
}
