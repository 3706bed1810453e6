// The guest's own programs: built from guest/c, and where each goes in an image.

import { createHash } from 'node:crypto';
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { run } from './command.ts';

export const GUEST_DIRECTORY = join(import.meta.dirname, '../..');

export const COMMANDS = [
  'sfdotix',
  'sfdoclone',
  'sfclone',
  'sfmerge',
  'sfreset',
  'sfexit',
  'sfjoin',
  'sfshutdown',
] as const;
export const PROBES = ['sfgap', 'sftouch', 'sfmemtest', 'sfrandom', 'sffork', 'sfresult'] as const;

/** Files all images share: built file to place in the guest. */
export const GUEST_PROGRAMS = [
  ['sfagent', 'usr/sbin/sfagent'],
  ['sfcmd', 'usr/bin/sfcmd'],
  ['sfprobe', 'usr/lib/snowflock/sfprobe'],
] as const;

/** Links all images share: place in the guest to target. */
export const GUEST_LINKS: readonly (readonly [string, string])[] = [
  ...COMMANDS.map((name) => [`usr/bin/${name}`, 'sfcmd'] as const),
  ...PROBES.map((name) => [`usr/lib/snowflock/${name}`, 'sfprobe'] as const),
];

/** Compiles into `output`. */
export async function buildGuestTools(output: string, signal: AbortSignal | undefined): Promise<void> {
  await run('make', ['-s', '-C', join(GUEST_DIRECTORY, 'c'), '-j4', `O=${output}`, 'all'], { signal });
}

/** What is done with images, not what is in them. */
const HANDLING = ['index.ts', 'lock.ts', 'old-images.ts', 'store.ts'];

/**
 * A hash of everything an image is made of that lies in this repository: the guest's sources and this builder, without the recipe files
 * of other images (paths relative to this folder), and with more folders of guest/.
 */
export async function hashSources(
  otherRecipes: readonly string[],
  folders: readonly string[],
): Promise<string> {
  const others = [...otherRecipes, ...HANDLING].map((file) => join(import.meta.dirname, file));
  const hash = createHash('sha256');
  for (const part of ['c', 'python', 'typescript', 'image/src', ...folders]) {
    const root = join(GUEST_DIRECTORY, part);
    const files = (await readdir(root, { recursive: true, withFileTypes: true }))
      .filter(
        (entry) => entry.isFile() && /\.(c|h|py|ts|mjs|mts|lmp)$|^(Makefile|sf[a-z-]+)$/.test(entry.name),
      )
      .map((entry) => join(entry.parentPath, entry.name))
      .filter((path) => !path.startsWith(join(root, 'build/')) && !others.includes(path))
      .sort();
    for (const path of files) {
      hash.update(`${path.slice(GUEST_DIRECTORY.length)}\0`);
      hash.update(await readFile(path));
    }
  }
  return hash.digest('hex').slice(0, 16);
}
