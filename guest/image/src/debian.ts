// The recipe of `debian`: Debian 12 on a disk, with Python, BLAST, and the proteomes of four real Klebsiella genomes: three as a BLAST
// database, the fourth as the queries. The proteomes are predicted while building, natively in the chroot.

import { chmod, cp, mkdir, rm, symlink, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { BASE_PACKAGES, makeBase } from './base.ts';
import { run } from './command.ts';
import { makeDisk } from './disk.ts';
import { GUEST_DIRECTORY, GUEST_LINKS, GUEST_PROGRAMS } from './guest-tools.ts';
import { COMMON_APPEND, type Recipe, type RecipeContext } from './recipe.ts';

const SUITE = 'bookworm';
const DISK_BYTES = 1024 * 1024 * 1024;
/** Stay in the image. */
const PACKAGES = ['python3', 'ncbi-blast+', 'iproute2', 'procps'];
/** Only make the data. */
const BUILD_PACKAGES = ['prodigal', 'kleborate-examples', 'xz-utils'];

/** Runs in the chroot. The genomes are taken in the order of their names; the last one gives the queries. */
const MAKE_DATA = `#!/bin/sh
set -eu
mkdir -p /srv/klebsiella/db
cd /srv/klebsiella
list=$(dpkg -L kleborate-examples | grep -E '\\.(fasta|fna|fa)(\\.xz)?$' | sort)
for genome in $list; do
  name=$(basename "$genome" .xz); name=\${name%.*}
  case $genome in *.xz) xzcat "$genome" ;; *) cat "$genome" ;; esac > "/tmp/$name.fna"
done
ls /tmp/*.fna | xargs -P "$(nproc)" -I GENOME sh -c \\
  'name=$(basename GENOME .fna); prodigal -q -i GENOME -a "/srv/klebsiella/$name.faa" -o /dev/null'
last=$(ls *.faa | tail -n 1)
for proteome in $(ls *.faa | head -n -1); do
  # prodigal ends each protein with '*', and its ids are unique only within a genome
  sed -e "s/^>/>\${proteome%.faa}_/" -e 's/\\*$//' "$proteome"
done > /tmp/kleb3.faa
sed 's/\\*$//' "$last" > query.faa
makeblastdb -in /tmp/kleb3.faa -dbtype prot -out /srv/klebsiella/db/kleb3 -title 'three Klebsiella proteomes'
rm -f /tmp/*.fna /tmp/kleb3.faa
apt-get -q -y purge ${BUILD_PACKAGES.join(' ')}
apt-get -q -y autoremove --purge
`;

export const debian: Recipe = {
  packages: [...PACKAGES, ...BUILD_PACKAGES, ...BASE_PACKAGES],

  async build(context) {
    const { output, signal, progress } = context;
    const { tools, result } = await makeBase(context);
    progress('installing Debian and predicting the proteomes');
    const root = await installSystem(context);
    await installGuest(root, tools);
    progress('making the disk');
    await makeDisk({ from: root, path: join(output, 'disk.raw'), sizeBytes: DISK_BYTES, signal });
    const append = `${COMMON_APPEND} snowflock.root=/dev/vda`;
    return { ...result, append, disk: { path: 'disk.raw', sizeBytes: DISK_BYTES } };
  },
};

async function installSystem({ work, signal, progress }: RecipeContext): Promise<string> {
  const root = join(work, 'root');
  const script = join(work, 'make-data');
  await writeFile(script, MAKE_DATA);
  await chmod(script, 0o755);
  const excluded = ['/usr/share/doc/*', '/usr/share/man/*', '/usr/share/locale/*', '/usr/share/info/*'];
  await run(
    'mmdebstrap',
    [
      '--mode=root',
      '--variant=minbase',
      `--include=${[...PACKAGES, ...BUILD_PACKAGES].join(',')}`,
      ...excluded.map((pattern) => `--dpkgopt=path-exclude=${pattern}`),
      // The examples live under /usr/share/doc.
      '--dpkgopt=path-include=/usr/share/doc/kleborate*',
      `--customize-hook=cp "${script}" "$1/make-data"`,
      '--customize-hook=chroot "$1" /make-data',
      '--customize-hook=rm "$1/make-data"',
      SUITE,
      root,
    ],
    { signal, onLine: (line) => line.startsWith('I:') && progress(line.slice(2).trim()) },
  );
  return root;
}

/** SnowFlock's own files, and the few settings a system without an installer lacks. */
async function installGuest(root: string, tools: string): Promise<void> {
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
  for (const [path, target] of GUEST_LINKS) await symlink(target, join(root, path));
  for (const file of ['__init__.py', 'domUapi.py'])
    await place(
      join(GUEST_DIRECTORY, 'python/snowflock', file),
      `usr/lib/python3/dist-packages/snowflock/${file}`,
      0o644,
    );
  await writeFile(join(root, 'etc/fstab'), '/dev/vda / ext4 defaults 0 1\n');
  await writeFile(join(root, 'etc/hosts'), '127.0.0.1 localhost\n');
  await writeFile(join(root, 'etc/hostname'), 'snowflock\n');
  await rm(join(root, 'etc/resolv.conf'), { force: true }); // a copy of the building host's
  await writeFile(join(root, 'etc/resolv.conf'), '');
}
