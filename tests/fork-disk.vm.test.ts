// A fork's disk: the clones see the master VM's as it was at that instant, and what each writes is its own.

import { execFile } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { beforeAll, describe, expect, it } from 'vitest';
import { copyFromVm } from '@snowflock/sdk';
import { compileForGuest } from './support/guest-programs.ts';
import { within } from './support/deadline.ts';
import type { Guest } from './support/guest.ts';
import { requireVm } from './require-vm.ts';
import { sharedLab } from './support/test-lab.ts';

const RUN = requireVm();
const run = promisify(execFile);
/** A disk of 64 MiB out of a guest under emulation. */
const COPY_MS = 60_000;

describe.skipIf(!RUN)("a fork's disk", () => {
  const lab = sharedLab({ hosts: 2, cpus: 6, ramMib: 2048 });
  let vmtest: Buffer;
  beforeAll(async () => {
    vmtest = await compileForGuest('vmtest');
  });

  /** e2fsck's verdict on the disk of a VM, which must not have it mounted. */
  async function checkFileSystem(guest: Guest): Promise<string> {
    const dir = mkdtempSync('/tmp/sft-disk-');
    try {
      const to = join(dir, 'disk');
      await guest.sh('dd if=/dev/vda bs=1M 2>/dev/null | gzip -1 > /run/disk.gz');
      const copy = copyFromVm(lab().lab.client(1), { vm: guest.name, from: '/run/disk.gz', to: `${to}.gz` });
      await within(COPY_MS, 'copying the disk', copy);
      await run('gunzip', [`${to}.gz`]);
      return (await run('e2fsck', ['-fn', to])).stdout;
    } finally {
      rmSync(dir, { recursive: true });
    }
  }

  it('is copied as of the fork; what a clone writes is its own, and gone with it', async () => {
    const master = await lab().seed();
    await master.sh('echo before > /disk/file; echo unsynced > /disk/late; sync /disk/file');
    const { ticket, clones } = await lab().fork(master, 2);
    await master.sh('echo master > /disk/file; echo master > /disk/of-master; sync');
    for (const clone of clones) {
      expect(await clone.sh('cat /disk/file /disk/late')).toBe('before\nunsynced');
      await clone.sh(`echo ${clone.name} > /disk/file; sync; echo 3 > /proc/sys/vm/drop_caches`);
    }
    for (const clone of clones) {
      expect(await clone.sh('cat /disk/file')).toBe(clone.name);
      expect(await clone.sh('ls /disk')).not.toContain('of-master');
    }
    expect(await master.sh('echo 3 > /proc/sys/vm/drop_caches; cat /disk/file')).toBe('master');
    await master.run(['sfmerge', ticket]);
    const next = await lab().fork(master, 1);
    expect(await next.clones[0]?.sh('cat /disk/file /disk/of-master')).toBe('master\nmaster');
  });

  it('is whole in clones of a master VM that writes all the while', async () => {
    const master = await lab().seed();
    await master.put('/tmp/vmtest', vmtest);
    await using writer = await master.start(['/tmp/vmtest', 'writer', '/disk']);
    expect(await writer.line()).toBe('writing');
    const first = await lab().fork(master, 2);
    const second = await lab().fork(master, 1);
    // The writer goes on in the clones. When it has stopped, every file is whole: from the disk, not from memory.
    const stop = 'killall -TERM vmtest; while killall -0 vmtest 2>/dev/null; do usleep 50000; done; sync';
    for (const vm of [master, ...first.clones, ...second.clones]) {
      await vm.sh(`${stop}; echo 3 > /proc/sys/vm/drop_caches`);
      expect(await vm.run(['/tmp/vmtest', 'check', '/disk'])).toBe('files=24 wrong=0');
      expect(await vm.diskErrors()).toBe('');
    }
    expect(await writer.line()).toMatch(/^round=\d+$/);
    const [clone] = second.clones;
    if (!clone) throw new Error('no clone');
    await clone.sh('umount /disk');
    expect(await checkFileSystem(clone)).toMatch(/: \d+\/\d+ files/);
  });
});
