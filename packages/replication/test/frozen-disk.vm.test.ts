// The frozen disk: our NBD client against the real qemu-nbd, and the whole way to the memtap's disk file.

import { execFileSync } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { readFileSync, writeFileSync } from 'node:fs';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { requireVm } from '../../../tests/require-vm.ts';
import { FrozenDisk, qemuNbdArgs } from '../src/memserver/frozen-disk.ts';
import { isAlive } from '../src/supervisor/child-process.ts';
import { Harness } from './vm-harness.ts';

// not whole pages: the last one is cut by the end of the disk
const SIZE_BYTES = 4 * 1024 * 1024 + 512;

/** Pages of data with every fourth left zero. */
function diskContents(): Buffer {
  const bytes = randomBytes(SIZE_BYTES);
  for (let at = 0; at < SIZE_BYTES; at += 4 * 4096) bytes.fill(0, at, Math.min(at + 4096, SIZE_BYTES));
  return bytes;
}

describe('qemuNbdArgs', () => {
  it('dies with us, reads only, and takes a path with commas for a path', () => {
    expect(qemuNbdArgs({ format: 'qcow2', path: '/a,b', sizeBytes: 1, socketPath: '/s' })).toEqual([
      ...[
        '--pdeathsig',
        'KILL',
        'qemu-nbd',
        '--read-only',
        '--persistent',
        '--shared=4',
        '--socket=/s',
        '--image-opts',
      ],
      'driver=qcow2,file.driver=file,file.filename=/a,,b,force-share=on',
    ]);
  });
});

describe.skipIf(!requireVm(['root', 'fuse', 'qemu']))('a frozen disk', () => {
  let harness: Harness;
  let contents: Buffer;
  let overlay: string;
  beforeEach(() => {
    harness = new Harness();
    contents = diskContents();
    const base = harness.path('base.raw');
    overlay = harness.path('over,lay.qcow2');
    writeFileSync(base, contents);
    execFileSync('qemu-img', ['create', '-q', '-f', 'qcow2', '-b', base, '-F', 'raw', overlay]);
    // one part of the chain lies in the overlay
    contents.fill(0x5a, 8192, 12_288);
    execFileSync('qemu-io', ['-f', 'qcow2', '-c', 'write -q -P 0x5a 8192 4096', overlay]);
  });
  afterEach(async () => harness[Symbol.asyncDispose]());

  it('is read through qemu-nbd, many reads at once', async () => {
    const disk = FrozenDisk.start({
      format: 'qcow2',
      path: overlay,
      sizeBytes: SIZE_BYTES,
      socketPath: harness.path('nbd'),
    });
    harness.defer(() => disk.close());
    const target = Buffer.alloc(disk.pageCount * 4096, 1);
    const reads = Array.from({ length: 33 }, async (_, index) => {
      const firstPage = index * 32;
      const pageCount = Math.min(32, disk.pageCount - firstPage);
      return pageCount > 0
        ? disk.read(target, { offset: firstPage * 4096, firstPage, pageCount })
        : undefined;
    });
    await Promise.all(reads);
    expect(target.subarray(0, SIZE_BYTES).equals(contents)).toBe(true);
    expect(target.subarray(SIZE_BYTES).every((byte) => byte === 0)).toBe(true);
  });

  it('fails its reads when there is no such image', async () => {
    const disk = FrozenDisk.start({
      format: 'qcow2',
      path: '/nonexistent',
      sizeBytes: 4096,
      socketPath: harness.path('nbd'),
    });
    harness.defer(() => disk.close());
    const read = disk.read(Buffer.alloc(4096), { offset: 0, firstPage: 0, pageCount: 1 });
    await expect(read).rejects.toMatchObject({ code: 'unavailable' });
  });

  it('comes through memserver and memtap as it is, and qemu-nbd goes with a killed memserver', async () => {
    const key = randomBytes(32);
    const memserver = await harness.memserver({ key });
    const source = await harness.source({
      leasePath: memserver.leasePath,
      pages: 16,
      seed: 3,
      kind: 'mixed',
    });
    const disk = { format: 'qcow2', path: overlay, sizeBytes: SIZE_BYTES } as const;
    const { presence } = await memserver.freeze({ pid: source.pid, ramRanges: source.ranges, disk });
    const memtap = await harness.memtap({ pages: 16, diskBytes: SIZE_BYTES });
    await memtap.attach({ sources: [{ address: '127.0.0.1', port: memserver.port }], key, presence });
    const digest = (bytes: Buffer): string => createHash('sha256').update(bytes).digest('hex');
    for (let round = 0; round < 2; round++) {
      expect(digest(readFileSync(memtap.diskPath))).toBe(digest(contents));
      writeFileSync('/proc/sys/vm/drop_caches', '1');
    }
    const nbd = Number(
      execFileSync('pgrep', ['-f', `qemu-nbd.*${memserver.controlPath}`], { encoding: 'utf8' }).trim(),
    );
    expect(isAlive(nbd)).toBe(true);
    process.kill(memserver.pid, 'SIGKILL');
    await memserver.exited;
    await expect.poll(() => isAlive(nbd)).toBe(false);
  });
});
