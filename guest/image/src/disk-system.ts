// A Debian root file system with SnowFlock's own files in it, for images that live on a disk.

import { chmod, cp, mkdir, rm, symlink, writeFile } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { makeBase } from './base.ts';
import { run } from './command.ts';
import { makeDisk } from './disk.ts';
import { GUEST_DIRECTORY, GUEST_LINKS, GUEST_PROGRAMS } from './guest-tools.ts';
import { downloadPackage } from './kernel.ts';
import { COMMON_APPEND, type RecipeContext, type RecipeResult } from './recipe.ts';

const SUITE = 'bookworm';

export interface DiskSystem {
  /** Stay in the image. */
  readonly packages: readonly string[];
  /** Are there for the script, which purges them. */
  readonly buildPackages: readonly string[];
  /** Documentation that is unpacked all the same: dpkg's patterns. */
  readonly keptPaths?: readonly string[];
  /** Are not installed: their .deb files lie in /build for the script. */
  readonly downloads?: readonly string[];
  /** Runs in the chroot, natively. Files of `scriptFiles` lie in /build, which is gone afterwards. */
  readonly script: string;
  readonly scriptFiles?: readonly string[];
  readonly diskBytes: number;
  /** More files of this repository: path below guest/, place in the image, mode. */
  readonly files?: readonly (readonly [from: string, to: string, mode: number])[];
  /** More links: place in the image, target. */
  readonly links?: readonly (readonly [path: string, target: string])[];
}

/** Ends the script of a system: what only made something goes. */
export function purge(packages: readonly string[]): string {
  return `apt-get -q -y purge ${packages.join(' ')}\napt-get -q -y autoremove --purge\n`;
}

/** Lines of the script of a system: Debian's source package comes into the working folder, packed. */
export function downloadSource(name: string): string {
  return `sources=/etc/apt/sources.list.d/source.list
sed -n 's/^deb /deb-src /p' /etc/apt/sources.list >$sources
apt-get -q update
apt-get -q -o APT::Sandbox::User=root source --download-only ${name}
rm $sources
rm -rf /var/lib/apt/lists/*
`;
}

export async function buildDiskSystem(context: RecipeContext, system: DiskSystem): Promise<RecipeResult> {
  const { output, signal, progress } = context;
  const { tools, result } = await makeBase(context);
  progress('installing Debian');
  const root = await installSystem(context, system);
  await installGuest(root, tools, system);
  progress('making the disk');
  await makeDisk({ from: root, path: join(output, 'disk.raw'), sizeBytes: system.diskBytes, signal });
  const append = `${COMMON_APPEND} snowflock.root=/dev/vda`;
  return { ...result, append, disk: { path: 'disk.raw', sizeBytes: system.diskBytes } };
}

async function installSystem({ work, signal, progress }: RecipeContext, system: DiskSystem): Promise<string> {
  const root = join(work, 'root');
  const build = join(work, 'build');
  await mkdir(build);
  await writeFile(join(build, 'script'), system.script);
  await chmod(join(build, 'script'), 0o755);
  for (const name of system.downloads ?? []) await downloadPackage(name, build, signal);
  for (const file of system.scriptFiles ?? [])
    await cp(join(GUEST_DIRECTORY, file), join(build, basename(file)));
  const excluded = ['/usr/share/doc/*', '/usr/share/man/*', '/usr/share/locale/*', '/usr/share/info/*'];
  await run(
    'mmdebstrap',
    [
      '--mode=root',
      '--variant=minbase',
      `--include=${[...system.packages, ...system.buildPackages].join(',')}`,
      ...excluded.map((pattern) => `--dpkgopt=path-exclude=${pattern}`),
      ...(system.keptPaths ?? []).map((pattern) => `--dpkgopt=path-include=${pattern}`),
      `--customize-hook=cp -r "${build}" "$1/build"`,
      '--customize-hook=chroot "$1" /build/script',
      '--customize-hook=rm -r "$1/build"',
      SUITE,
      root,
    ],
    { signal, onLine: (line) => line.startsWith('I:') && progress(line.slice(2).trim()) },
  );
  return root;
}

/** SnowFlock's own files, and the few settings a system without an installer lacks. */
async function installGuest(root: string, tools: string, system: DiskSystem): Promise<void> {
  const place = async (from: string, to: string, mode: number): Promise<void> => {
    await mkdir(dirname(join(root, to)), { recursive: true });
    await cp(from, join(root, to));
    await chmod(join(root, to), mode);
  };
  for (const [from, to] of GUEST_PROGRAMS) await place(join(tools, from), to, 0o755);
  await place(join(tools, 'sf-init'), 'usr/sbin/sf-init', 0o755); // /sbin is a link to /usr/sbin
  await place(join(tools, 'libsf.a'), 'usr/lib/libsf.a', 0o644);
  await place(join(tools, 'libsf.so'), 'usr/lib/libsf.so', 0o644);
  await place(join(tools, 'sf.h'), 'usr/include/sf.h', 0o644);
  for (const [from, to, ...files] of [
    [
      'python/snowflock',
      'usr/lib/python3/dist-packages/snowflock',
      '__init__.py',
      '_bytes.py',
      '_errors.py',
      'domUapi.py',
    ],
    [
      'typescript',
      'usr/lib/node_modules/snowflock',
      'package.json',
      'snowflock.mjs',
      'snowflock.d.mts',
      'connection.mjs',
      'connection.d.mts',
    ],
  ] as const)
    for (const file of files) await place(join(GUEST_DIRECTORY, from, file), `${to}/${file}`, 0o644);
  for (const [from, to, mode] of system.files ?? []) await place(join(GUEST_DIRECTORY, from), to, mode);
  for (const [path, target] of [...GUEST_LINKS, ...(system.links ?? [])])
    await symlink(target, join(root, path));
  await writeFile(join(root, 'etc/fstab'), '/dev/vda / ext4 defaults 0 1\n');
  await writeFile(join(root, 'etc/hosts'), '127.0.0.1 localhost\n');
  await writeFile(join(root, 'etc/hostname'), 'snowflock\n');
  await rm(join(root, 'etc/resolv.conf'), { force: true }); // a copy of the building host's
  await writeFile(join(root, 'etc/resolv.conf'), '');
}
