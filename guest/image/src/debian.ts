// The recipe of `debian`: Debian 12 on a disk, with Python, BLAST, and the proteomes of four real Klebsiella genomes: three as a BLAST
// database, the fourth as the queries. The proteomes are predicted while building, natively in the chroot.

import { BASE_PACKAGES } from './base.ts';
import { buildDiskSystem, purge } from './disk-system.ts';
import type { Recipe } from './recipe.ts';

const DISK_BYTES = 1024 * 1024 * 1024;
/** Stay in the image. */
const PACKAGES = ['python3', 'ncbi-blast+', 'iproute2', 'procps', 'openssl'];
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
${purge(BUILD_PACKAGES)}`;

export const debian: Recipe = {
  packages: [...PACKAGES, ...BUILD_PACKAGES, ...BASE_PACKAGES],
  sources: [],
  build: (context) =>
    buildDiskSystem(context, {
      packages: PACKAGES,
      buildPackages: BUILD_PACKAGES,
      keptPaths: ['/usr/share/doc/kleborate*'], // the examples
      script: MAKE_DATA,
      diskBytes: DISK_BYTES,
    }),
};
