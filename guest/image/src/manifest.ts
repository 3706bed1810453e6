// What an image is: the manifest that lies in its directory, and how one is read back.

import { readFile } from 'node:fs/promises';
import { isAbsolute, join } from 'node:path';
import { SnowflockError } from '@snowflock/protocol';

export const IMAGE_NAMES = ['micro', 'debian', 'mpi', 'distcc', 'examples'] as const;
export type ImageName = (typeof IMAGE_NAMES)[number];

export const MANIFEST_FILE = 'manifest.json';

export interface ImageDisk {
  /** Absolute path; a sparse file, never written by a VM (each runs on an overlay). */
  readonly path: string;
  readonly format: 'raw';
  readonly sizeBytes: number;
}

export interface ImageManifest {
  readonly name: ImageName;
  /** Of the recipe, the guest sources and the versions of the packages. */
  readonly hash: string;
  /** Of the recipe and the guest sources alone: tells whether this image is what would be built now. */
  readonly recipe: string;
  readonly directory: string;
  /** Uncompressed ELF kernel (absolute path), for QEMU's -kernel. */
  readonly kernel: string;
  /** Absolute path, for -initrd. */
  readonly initrd: string;
  /** Kernel command line; whoever starts a VM may add to it. */
  readonly append: string;
  readonly disk?: ImageDisk;
  /** ISO 8601. */
  readonly createdAt: string;
  readonly packages: Readonly<Record<string, string>>;
}

/** In the file, paths are relative, so that a store can be moved. */
export function encodeManifest(manifest: ImageManifest): string {
  const relative = (path: string): string => path.slice(manifest.directory.length + 1);
  const { directory: _directory, disk, ...rest } = manifest;
  return (
    JSON.stringify(
      {
        ...rest,
        kernel: relative(manifest.kernel),
        initrd: relative(manifest.initrd),
        ...(disk && { disk: { ...disk, path: relative(disk.path) } }),
      },
      null,
      2,
    ) + '\n'
  );
}

export async function readManifest(directory: string): Promise<ImageManifest> {
  const path = join(directory, MANIFEST_FILE);
  const bad = (what: string): SnowflockError =>
    new SnowflockError('internal', `${path}: ${what}; delete ${directory} and build the image again`);
  let value: unknown;
  try {
    value = JSON.parse(await readFile(path, 'utf8'));
  } catch (error) {
    throw bad(error instanceof Error ? error.message : String(error));
  }
  const fields = record(value);
  if (!fields) throw bad('not an object');
  const text = (key: string): string => {
    const field = fields[key];
    if (typeof field !== 'string') throw bad(`'${key}' is missing`);
    return field;
  };
  const inside = (file: string): string => {
    if (isAbsolute(file) || file.includes('..')) throw bad(`'${file}' lies outside the image`);
    return join(directory, file);
  };
  const name = IMAGE_NAMES.find((known) => known === text('name'));
  if (!name) throw bad(`unknown image name '${text('name')}'`);
  const packages: Record<string, string> = {};
  for (const [key, version] of Object.entries(record(fields['packages']) ?? {}))
    packages[key] = String(version);
  const disk = record(fields['disk']);
  if (disk && (typeof disk['path'] !== 'string' || typeof disk['sizeBytes'] !== 'number'))
    throw bad(`'disk' is incomplete`);
  return {
    name,
    hash: text('hash'),
    recipe: text('recipe'),
    directory,
    kernel: inside(text('kernel')),
    initrd: inside(text('initrd')),
    append: text('append'),
    createdAt: text('createdAt'),
    packages,
    ...(disk && {
      disk: { path: inside(String(disk['path'])), format: 'raw', sizeBytes: Number(disk['sizeBytes']) },
    }),
  };
}

function record(value: unknown): Record<string, unknown> | undefined {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
    ? (value as Record<string, unknown>)
    : undefined;
}
