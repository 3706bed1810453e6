// The recipe of `mpi`: Debian 12 with MPICH and Open MPI, sfmpirun, LAMMPS, and small programs of both, compiled while
// building: our own, MPICH's examples, and some of MPICH's tests from Debian's source package.

import { BASE_PACKAGES } from './base.ts';
import { buildDiskSystem, downloadSource, purge } from './disk-system.ts';
import { JOBS, JOBS_PLACE } from './jobs.ts';
import type { Recipe } from './recipe.ts';

const DISK_BYTES = 1024 * 1024 * 1024;
/** Stay in the image. */
const PACKAGES = ['python3', 'mpich', 'openmpi-bin', 'iproute2', 'procps'];
/** LAMMPS, as far as it runs: installed by apt it would bring a Fortran compiler and 50 MB of potentials. */
const LAMMPS = ['lammps', 'liblammps0', 'libkim-api2', 'libvoro++1'];
const LAMMPS_NEEDS = [
  ...['libcurl4', 'libfftw3-double3', 'libgfortran5', 'libgomp1', 'libjpeg62-turbo', 'libpng16-16'],
  'libpython3.11',
];
/** Only compile. */
const BUILD_PACKAGES = ['gcc', 'libc6-dev', 'xz-utils'];
/** Headers, and MPICH's examples: not installed, because they would bring compilers of three languages with them. */
const DOWNLOADS = ['libmpich-dev', 'libopenmpi-dev', 'mpich-doc'];
/** The programs that sfmpirun is tested with, and what it preloads. */
const PLACE = 'usr/lib/snowflock/mpi';
/** In usr/share/doc/mpich/examples. */
const EXAMPLES = ['cpi', 'icpi'];
/** In test/mpi of MPICH's source: some that need no more of it than its util, and move little, as emulated guests are slow. */
const TESTS = ['coll/coll4', 'coll/allred6', 'coll/scantst', 'pt2pt/isendrecv', 'comm/cmsplit'];
/**
 * In place of what MPICH's configure writes to mpitestconf.h: these tests ask for no more of Debian 12 than this. mtest's header wants a
 * kind of threads to be named, though none of the programs starts one.
 */
const TEST_CONFIGURATION = [
  'HAVE_STRING_H',
  'HAVE_UNISTD_H',
  'HAVE_STDARG_H',
  'THREAD_PACKAGE_NAME=THREAD_PACKAGE_POSIX',
];
const MODULES = ['__init__', 'mpi', 'options', 'run'];

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
# MPICH's own code: its warnings are not ours to mend
for name in ${EXAMPLES.join(' ')}; do
  gcc -O2 -s -w -o /${PLACE}/$name $mpich usr/share/doc/mpich/examples/$name.c -l:libmpich.so.12 -lm
done
${downloadSource('mpich')}mkdir tests
tar -xJf mpich_*.orig.tar.xz -C tests --strip-components=3 --wildcards '*/test/mpi'
for definition in ${TEST_CONFIGURATION.join(' ')}; do
  echo "#define $definition" | tr = ' '
done >tests/include/mpitestconf.h
for name in ${TESTS.join(' ')}; do
  gcc -O2 -s -w -o /${PLACE}/\${name#*/} $mpich -I tests/include tests/$name.c \\
    tests/util/mtest.c tests/util/mtest_common.c tests/util/mtest_single.c -l:libmpich.so.12
done
cp usr/bin/lmp /usr/bin
cp -a usr/lib/$arch/liblammps.so* usr/lib/$arch/libkim-api.so* usr/lib/$arch/libvoro++.so* /usr/lib/$arch
ldconfig
${purge(BUILD_PACKAGES)}ldd /usr/bin/lmp | grep 'not found' && exit 1
:`;

export const mpi: Recipe = {
  packages: [...PACKAGES, ...LAMMPS_NEEDS, ...BUILD_PACKAGES, ...DOWNLOADS, ...LAMMPS, ...BASE_PACKAGES],
  sources: ['jobs', 'mpi'],
  build: (context) =>
    buildDiskSystem(context, {
      packages: [...PACKAGES, ...LAMMPS_NEEDS],
      buildPackages: BUILD_PACKAGES,
      downloads: [...DOWNLOADS, ...LAMMPS],
      script: COMPILE,
      scriptFiles: ['mpi/mpitest.c', 'mpi/ucx_disconnect.c'],
      diskBytes: DISK_BYTES,
      files: [
        ...JOBS,
        ['mpi/melt.lmp', `${PLACE}/melt.lmp`, 0o644],
        ['mpi/sfmpirun', `${JOBS_PLACE}/sfmpirun`, 0o755],
        ...MODULES.map((name) => [`mpi/sfmpi/${name}.py`, `${JOBS_PLACE}/sfmpi/${name}.py`, 0o644] as const),
      ],
      links: ['sfmpirun', 'sfmpirun.sigs', 'sfmpirun.nosigs'].map(
        (name) => [`usr/bin/${name}`, `/${JOBS_PLACE}/sfmpirun`] as const,
      ),
    }),
};
