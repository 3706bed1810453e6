// The recipe of `mpi`: Debian 12 with MPICH and Open MPI, sfmpirun, and small programs of both, compiled while building.

import { BASE_PACKAGES } from './base.ts';
import { buildDiskSystem, purge } from './disk-system.ts';
import type { Recipe } from './recipe.ts';

const DISK_BYTES = 1024 * 1024 * 1024;
/** Stay in the image. */
const PACKAGES = ['python3', 'mpich', 'openmpi-bin', 'iproute2', 'procps'];
/** Only compile. */
const BUILD_PACKAGES = ['gcc', 'libc6-dev'];
/** Headers, and MPICH's examples: not installed, because they would bring compilers of three languages with them. */
const DOWNLOADS = ['libmpich-dev', 'libopenmpi-dev', 'mpich-doc'];
/** Where sfmpirun lies, and the programs that it is tested with. */
const PLACE = 'usr/lib/snowflock/mpi';
const MODULES = ['__init__', 'job', 'launch', 'launcher', 'mpi', 'options', 'processes', 'run', 'wire'];

const COMPILE = `#!/bin/sh
set -eu
mkdir -p /${PLACE}
cd /build
for deb in *.deb; do dpkg-deb -x "$deb" .; done
arch=$(uname -m)-linux-gnu
cc="gcc -O2 -s -Wall -Wextra -Werror"
mpich="-I usr/include/$arch/mpich"
$cc -fPIC -shared -o /${PLACE}/ucx-disconnect.so ucx_disconnect.c
$cc -o /${PLACE}/mpitest $mpich mpitest.c -l:libmpich.so.12
$cc -o /${PLACE}/mpitest-openmpi -I usr/lib/$arch/openmpi/include mpitest.c -l:libmpi.so.40
gcc -O2 -s -o /${PLACE}/cpi $mpich usr/share/doc/mpich/examples/cpi.c -l:libmpich.so.12 -lm
${purge(BUILD_PACKAGES)}`;

export const mpi: Recipe = {
  packages: [...PACKAGES, ...BUILD_PACKAGES, ...DOWNLOADS, ...BASE_PACKAGES],
  sources: ['mpi'],
  build: (context) =>
    buildDiskSystem(context, {
      packages: PACKAGES,
      buildPackages: BUILD_PACKAGES,
      downloads: DOWNLOADS,
      script: COMPILE,
      scriptFiles: ['mpi/mpitest.c', 'mpi/ucx_disconnect.c'],
      diskBytes: DISK_BYTES,
      files: [
        ['mpi/sfmpirun', `${PLACE}/sfmpirun`, 0o755],
        ...MODULES.map((name) => [`mpi/sfmpi/${name}.py`, `${PLACE}/sfmpi/${name}.py`, 0o644] as const),
      ],
      links: ['sfmpirun', 'sfmpirun.sigs', 'sfmpirun.nosigs'].map(
        (name) => [`usr/bin/${name}`, `/${PLACE}/sfmpirun`] as const,
      ),
    }),
};
