// sfdistcc: a C project of Debian, compiled in clones.

import { describe, expect, it } from 'vitest';
import type { VmShape } from '@snowflock/protocol';
import { eventually } from './support/deadline.ts';
import type { Guest } from './support/guest.ts';
import { requireVm } from './require-vm.ts';
import { sharedLab } from './support/test-lab.ts';

const SHAPE: VmShape = { diskImage: 'distcc', vcpus: 1, memoryMib: 256 };
const BUILD_MS = 120_000;
/** Where bzip2's source lies in the image. */
const SOURCE = 'cd /srv/bzip2';

describe.skipIf(!requireVm())('sfdistcc', () => {
  const lab = sharedLab({ hosts: 2, cpus: 4, ramMib: 1536 });

  async function expectNothingLeft(master: Guest): Promise<void> {
    const { clusters } = await lab().state();
    const cluster = clusters.find(({ clusterid }) => clusterid === master.clusterid);
    expect(cluster?.vms.filter(({ status }) => status === 'running').map(({ vmid }) => vmid)).toEqual([0]);
    expect(cluster?.tickets).toEqual([]);
    expect(await master.sh('ls -d /tmp/sfjob-*; pgrep -a "sf-keeper|distcc|make"; true')).toBe('');
  }

  it('compiles bzip2 in clones, to the same objects as on one machine', async () => {
    const master = await lab().seed(SHAPE);
    // The compiler is in the page cache of the VM, and so in those of its clones.
    await master.sh(`${SOURCE}; gcc -O2 -c -o /root/x.o randtable.c`, { deadlineMs: BUILD_MS });
    const log = '/root/distcc.log';
    const build = `DISTCC_LOG=${log} DISTCC_VERBOSE=1 sfdistcc make -j2 CFLAGS=-O2 libbz2.a`;
    const { status, err } = await master.exec(['sh', '-c', `${SOURCE}; ${build}`], { deadlineMs: BUILD_MS });
    expect({ status, err }).toMatchObject({ status: 0 });
    expect(err).not.toMatch(/distcc/);
    await expectNothingLeft(master);

    const objects = (await master.sh(`${SOURCE}; sha256sum --check --strict objects.sha256`)).split('\n');
    expect(objects.length).toBe(7);
    for (const line of objects) expect(line).toMatch(/: OK$/);
    // Each object came from a clone, and both had some of it.
    const where = await master.sh(`grep -o "compile [^ ]*\\.c on [^ ]* completed ok" ${log}; true`);
    const compiled = [...where.matchAll(/compile (\S+) on ([\d.]+):/g)].map(([, file, ip]) => ({ file, ip }));
    expect(compiled.map(({ file }) => file).sort()).toEqual(
      ['blocksort', 'bzlib', 'compress', 'crctable', 'decompress', 'huffman', 'randtable'].map(
        (name) => `${name}.c`,
      ),
    );
    expect(new Set(compiled.map(({ ip }) => ip))).toEqual(new Set(['10.0.0.2', '10.0.0.3']));
  });

  it('goes on without a clone that is lost, and gives all back when it is killed', async () => {
    const master = await lab().seed(SHAPE);
    const clone = async (): Promise<number> =>
      eventually(BUILD_MS, 'a clone', async () => {
        const [found] = (await Promise.all([1, 2].map((k) => lab().clonesOn(k, master.clusterid)))).flat();
        expect(found).toBeDefined();
        return found?.pid ?? Number.NaN;
      });

    await using build = await master.start([
      'sfdistcc',
      '-n',
      '1',
      'sh',
      '-c',
      'echo up; until [ -e /root/go ]; do sleep 0.1; done; gcc -c -o /root/x.o /srv/bzip2/crctable.c',
    ]);
    expect(await build.line(BUILD_MS)).toBe('up');
    process.kill(await clone(), 'SIGKILL');
    expect(await build.line(BUILD_MS)).toMatch(
      /^sfdistcc: the clone with the address \S+ is lost; others do its work$/,
    );
    await master.sh('touch /root/go');
    expect(await build.exited).toBe(0);
    await master.sh('test -s /root/x.o');
    await expectNothingLeft(master);

    await using killed = await master.start(['sfdistcc', '-n', '2', 'sh', '-c', 'echo up; exec sleep 600']);
    expect(await killed.line(BUILD_MS)).toBe('up');
    await master.sh('pkill -KILL -x sfdistcc');
    expect(await killed.exited).toBe(137);
    await eventually(BUILD_MS, 'all to be given back', () => expectNothingLeft(master));
  });
});
