// Building an image: look whether it is there, build it in a temporary directory, put it in place whole.

import { createHash } from 'node:crypto';
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { isErrorCode, SnowflockError } from '@snowflock/protocol';
import { run } from './command.ts';
import { debian } from './debian.ts';
import { distcc } from './distcc.ts';
import { hashSources } from './guest-tools.ts';
import {
  encodeManifest,
  IMAGE_NAMES,
  MANIFEST_FILE,
  type ImageManifest,
  type ImageName,
} from './manifest.ts';
import { micro } from './micro.ts';
import { examples } from './examples.ts';
import { mpi } from './mpi.ts';
import { removeOldImages } from './old-images.ts';
import type { Recipe } from './recipe.ts';
import { imageDirectory, inWorkDirectory, listImages, publish } from './store.ts';

const RECIPES: Readonly<Record<ImageName, Recipe>> = { micro, debian, mpi, distcc, examples };

export interface BuildOptions {
  readonly signal?: AbortSignal;
  /** Called with one line at a time, for people to read. */
  readonly onProgress?: (text: string) => void;
  /** Also build again when only Debian's packages have newer versions. */
  readonly refresh?: boolean;
}

/**
 * Builds an image, or returns the one that is there if the recipe and the guest's sources are still the same.
 * Throws 'unavailable' (a missing tool, no disk space, no package source) or 'internal'.
 */
export async function buildImage(name: ImageName, options: BuildOptions = {}): Promise<ImageManifest> {
  const recipe = RECIPES[name];
  const otherRecipes = IMAGE_NAMES.filter((other) => other !== name).map((other) => `${other}.ts`);
  const sources = await hashSources(otherRecipes, recipe.sources);
  try {
    const ready = options.refresh ? undefined : await existing(name, (image) => image.recipe === sources);
    if (ready) return ready;
    return await inWorkDirectory(name, options.signal, (work) =>
      buildAlone(name, recipe, sources, work, options),
    );
  } catch (error) {
    throw asBuildError(error, options.signal);
  }
}

async function existing(
  name: ImageName,
  same: (image: ImageManifest) => boolean,
): Promise<ImageManifest | undefined> {
  return (await listImages()).find((image) => image.name === name && same(image));
}

async function buildAlone(
  name: ImageName,
  recipe: Recipe,
  sources: string,
  work: string,
  options: BuildOptions,
): Promise<ImageManifest> {
  const versions = await candidateVersions(recipe.packages, options.signal);
  const hash = createHash('sha256')
    .update(JSON.stringify([sources, versions]))
    .digest('hex')
    .slice(0, 16);
  // Another builder may have finished while this one waited for its turn.
  const ready = await existing(name, (image) => image.hash === hash);
  if (ready) return ready;
  const output = join(work, 'image');
  await mkdir(output);
  const progress = (text: string): void => options.onProgress?.(`${name}: ${text}`);
  const built = await recipe.build({ work, output, signal: options.signal, progress });
  const directory = imageDirectory(name, hash);
  const manifest: ImageManifest = {
    name,
    hash,
    recipe: sources,
    directory,
    kernel: join(directory, built.kernel),
    initrd: join(directory, built.initrd),
    append: built.append,
    disk: { path: join(directory, built.disk.path), format: 'raw', sizeBytes: built.disk.sizeBytes },
    createdAt: new Date().toISOString(),
    packages: { ...versions, ...built.packages },
  };
  await writeFile(join(output, MANIFEST_FILE), encodeManifest(manifest));
  options.signal?.throwIfAborted();
  await publish(output, directory);
  progress(`ready in ${directory}`);
  for (const old of await removeOldImages(name)) progress(`removed the older ${old}`);
  return manifest;
}

/** What apt would install now. */
async function candidateVersions(
  packages: readonly string[],
  signal: AbortSignal | undefined,
): Promise<Record<string, string>> {
  const policy = await run('apt-cache', ['policy', ...packages], { signal });
  const versions: Record<string, string> = {};
  let current = '';
  for (const line of policy.split('\n')) {
    const heading = /^(\S+):$/.exec(line)?.[1];
    if (heading) current = heading;
    const candidate = /^ {2}Candidate: (\S+)$/.exec(line)?.[1];
    if (candidate && candidate !== '(none)') versions[current] = candidate;
  }
  const missing = packages.filter((name) => versions[name] === undefined);
  if (missing.length > 0)
    throw new SnowflockError(
      'unavailable',
      `Debian packages not found: ${missing.join(', ')}; run 'apt-get update'`,
    );
  return versions;
}

function asBuildError(error: unknown, signal: AbortSignal | undefined): unknown {
  if (signal?.aborted) return signal.reason;
  if (
    error instanceof SnowflockError ||
    !(error instanceof Error) ||
    !('code' in error) ||
    isErrorCode(error.code)
  )
    return error;
  if (error.code === 'ENOSPC' || error.code === 'EDQUOT')
    return new SnowflockError('unavailable', `no disk space for the image: ${error.message}`, {
      cause: error,
    });
  if (error.code === 'EACCES' || error.code === 'EPERM' || error.code === 'EROFS')
    return new SnowflockError('unavailable', `the image store cannot be written: ${error.message}`, {
      cause: error,
    });
  return new SnowflockError('internal', error.message, { cause: error });
}
