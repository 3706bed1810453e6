// The recipe of `distcc`: Debian 12 with gcc, make, distcc and sfdistcc, and the source of bzip2 as Debian has it, with what its objects
// are when they are compiled here, natively, in the same place.

import { BASE_PACKAGES } from './base.ts';
import { buildDiskSystem, downloadSource } from './disk-system.ts';
import { JOBS, JOBS_PLACE } from './jobs.ts';
import type { Recipe } from './recipe.ts';

const DISK_BYTES = 1024 * 1024 * 1024;
const PACKAGES = ['python3', 'gcc', 'libc6-dev', 'make', 'distcc', 'iproute2', 'procps'];

const PREPARE = `#!/bin/sh
set -eu
cd /build
${downloadSource('bzip2')}mkdir -p /srv/bzip2
tar -xzf bzip2_*.orig.tar.gz -C /srv/bzip2 --strip-components=1
cd /srv/bzip2
make -s CFLAGS=-O2 libbz2.a
sha256sum *.o >objects.sha256
make -s clean
update-distcc-symlinks
`;

export const distcc: Recipe = {
  packages: [...PACKAGES, ...BASE_PACKAGES],
  sources: ['jobs', 'distcc'],
  build: (context) =>
    buildDiskSystem(context, {
      packages: PACKAGES,
      buildPackages: [],
      script: PREPARE,
      diskBytes: DISK_BYTES,
      files: [...JOBS, ['distcc/sfdistcc', `${JOBS_PLACE}/sfdistcc`, 0o755]],
      links: [['usr/bin/sfdistcc', `/${JOBS_PLACE}/sfdistcc`]],
    }),
};
