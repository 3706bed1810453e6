// The recipe of `examples`: Debian 12 on a disk with what the programs of examples/ run on: Python, Node, QuantLib, and bowtie2 with the
// genome, its index and the reads that its package of examples carries.

import { BASE_PACKAGES } from './base.ts';
import { buildDiskSystem } from './disk-system.ts';
import type { Recipe } from './recipe.ts';

const DISK_BYTES = 1024 * 1024 * 1024;
const PACKAGES = ['python3', 'nodejs', 'quantlib-python', 'bowtie2', 'iproute2', 'procps'];
const DOWNLOADS = ['bowtie2-examples'];

const MAKE_DATA = `#!/bin/sh
set -eu
mkdir -p /srv/lambda
cd /build
dpkg-deb -x bowtie2-examples_*.deb unpacked
cd unpacked/usr/share/doc/bowtie2/examples
cp index/* reads/reads_1.fq.gz /srv/lambda
gunzip /srv/lambda/*.gz
`;

export const examples: Recipe = {
  packages: [...PACKAGES, ...DOWNLOADS, ...BASE_PACKAGES],
  sources: [],
  build: (context) =>
    buildDiskSystem(context, {
      packages: PACKAGES,
      buildPackages: [],
      downloads: DOWNLOADS,
      script: MAKE_DATA,
      diskBytes: DISK_BYTES,
    }),
};
