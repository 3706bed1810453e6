// Checkpoints: made of a running VM, which goes on; whole on a disk or not there at all; gone on from without that VM.

import { readdirSync, readFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { describe, expect, it } from 'vitest';
import { CheckpointInfo } from '@snowflock/protocol';
import { eventually } from './support/deadline.ts';
import type { Guest } from './support/guest.ts';
import { TEST_DISK } from './support/leftovers.ts';
import { MemoryTest } from './support/memtest.ts';
import { requireVm } from './require-vm.ts';
import { MICRO, sharedLab } from './support/test-lab.ts';

const RUN = requireVm();
const CREATE_MS = 60_000;
const AREA_MIB = 40;
/** Takes long enough to write. */
const LARGE_MIB = 256;
const FAILED_MS = 20_000;
/** From the start of the process that writes to the midst of its work: hundreds of MiB. */
const WRITING_MS = 300;
/** A memtap looks for its source for 10 s. */
const LOST_MS = 40_000;

describe.skipIf(!RUN)('a checkpoint', () => {
  const lab = sharedLab({ hosts: 2, cpus: 6, ramMib: 2048, hostTimeoutSeconds: 8 });

  const checkpoint = (...args: string[]): ReturnType<ReturnType<typeof lab>['command']> =>
    lab().command('snowflock', ['checkpoint', ...args], { deadlineMs: CREATE_MS });

  async function ok(...args: string[]): Promise<string> {
    const { status, out, err } = await checkpoint(...args);
    expect({ status, err }).toEqual({ status: 0, err: '' });
    return out;
  }

  async function info(name: string): Promise<CheckpointInfo> {
    return CheckpointInfo.parse(JSON.parse(await ok('show', name, '--json')));
  }

  const stored = (k: number): string[] =>
    readdirSync(`${lab().lab.hosts[k - 1]?.dir ?? ''}/state/checkpoints`).sort();

  it('is made of a VM that goes on writing, is listed, shown and deleted', async () => {
    const master = await lab().seed({ ...MICRO, memoryMib: 128 });
    await using memory = await MemoryTest.start(lab(), master, { areaMib: AREA_MIB, writer: true });
    const made = await ok('create', master.name, 'first', '--description', 'for a test');
    expect(made).toMatch(/^first: [\d.]+M, on host[12]; the VM was paused for \d+ ms\n$/);
    const { ticket, clones } = await memory.fork(1);
    for (const clone of clones) await memory.expectRight(clone);
    await memory.merge(ticket);
    const first = await info('first');
    expect(first).toMatchObject({
      ...{ name: 'first', description: 'for a test', vm: master.name, status: 'ready', hostUp: true },
      ...{ shape: { diskImage: 'micro', memoryMib: 128, vcpus: 1 }, usedBy: [] },
    });
    expect(first.presentPages).toBeGreaterThan(AREA_MIB * 256);
    expect(first.sizeBytes).toBeGreaterThan(first.presentPages * 4096);
    expect(stored(await lab().hostOf(master))).toEqual(['first']);
    expect(await ok('list')).toMatch(/^NAME .*\nfirst +ready +host[12] /);
    expect(await checkpoint('create', master.name, 'first')).toMatchObject({
      status: 1,
      err: expect.stringMatching(/there is a checkpoint 'first' already/) as string,
    });
    await ok('delete', 'first');
    expect(stored(await lab().hostOf(master))).toEqual([]);
    expect(await checkpoint('show', 'first')).toMatchObject({
      status: 1,
      err: expect.stringMatching(/there is no checkpoint 'first'/) as string,
    });
    expect(await checkpoint('create', '77:0', 'second')).toMatchObject({
      status: 1,
      err: expect.stringMatching(/there is no cluster 77/) as string,
    });
  });

  it('is gone on from on another host, when its VM is no more: memory, disk, identity; and that VM forks', async () => {
    const master = await lab().seed({ ...MICRO, memoryMib: 128 }, { on: 1 });
    const memory = await MemoryTest.start(lab(), master, { areaMib: AREA_MIB, writer: true, detached: true });
    await master.sh(
      'echo before > /disk/synced; sync; echo before > /disk/unsynced; echo before > /run/file',
    );
    const random = await master.sh('head -c 16 /dev/urandom | md5sum');
    await ok('create', master.name, 'kept');
    await master.sh('echo after > /disk/synced; rm /disk/unsynced; echo after > /run/file; sync');
    await lab().shutdown(master.clusterid);

    const again = await lab().seedFrom('kept', { on: 2 });
    expect(again.clusterid).not.toBe(master.clusterid);
    expect(await again.sh('cat /disk/synced /disk/unsynced /run/file')).toBe('before\nbefore\nbefore');
    expect(await again.run(['hostname'])).toBe(`sf-${again.clusterid}-0`);
    expect(await again.run(['cat', '/run/snowflock/identity'])).toMatch(
      new RegExp(`^clusterid=${again.clusterid}\\nvmid=0\\n`),
    );
    expect(await again.sh('head -c 16 /dev/urandom | md5sum')).not.toBe(random);
    const aheadS = Number(await again.run(['date', '+%s'])) - Date.now() / 1000;
    expect(Math.abs(aheadS)).toBeLessThan(5);
    expect(await again.diskErrors()).toBe('');

    const copy = memory.in(again);
    const { ticket, clones } = await copy.fork(2);
    for (const clone of clones) await copy.expectRight(clone);
    expect(await clones[0]?.sh('cat /disk/synced')).toBe('before');
    await copy.merge(ticket);

    expect((await info('kept')).usedBy).toEqual([again.clusterid]);
    expect(await checkpoint('delete', 'kept')).toMatchObject({
      status: 1,
      err: expect.stringMatching(/'kept' feeds cluster \d+; shut that down first/) as string,
    });
    // another sfld, on both hosts: what is fed goes on being fed, what is kept is found
    for (const k of [1, 2]) await lab().killDaemon(k, 'sfld');
    for (const k of [1, 2]) await lab().lab.startDaemon(k, 'sfld');
    await lab().hostsUp();
    expect(await again.sh('cat /disk/unsynced')).toBe('before');
    expect(await info('kept')).toMatchObject({ status: 'ready' });
    // a checkpoint of a VM that is itself fed from one
    await ok('create', again.name, 'second');
    await lab().shutdown(again.clusterid);
    await ok('delete', 'kept');
    const third = await lab().seedFrom('second');
    expect(await third.sh('cat /disk/unsynced')).toBe('before');
    const copied = await copy.in(third).fork(1);
    for (const clone of copied.clones) await copy.in(third).expectRight(clone);
  });

  it('whose host is cut off starts nothing, and what is fed from it is lost with a reason', async () => {
    const master = await lab().seed(MICRO, { on: 2 });
    await ok('create', master.name, 'far');
    const fed = await lab().seedFrom('far', { on: 1 });
    await lab().lab.cutHost(2);
    await eventually(LOST_MS, 'the VM that is fed from it to end', async () =>
      expect(await lab().vm(fed)).toBeUndefined(),
    );
    expect(readFileSync(lab().lab.logPath(1, 'sfmd'), 'utf8')).toMatch(/memory can no longer be fetched/);
    await eventually(LOST_MS, 'host 2 to be down', async () =>
      expect((await info('far')).hostUp).toBe(false),
    );
    const refused = async (why: RegExp, ...args: string[]): Promise<void> => {
      const said = expect.stringMatching(why) as string;
      expect(await checkpoint(...args)).toMatchObject({ status: 1, err: said });
    };
    await refused(/is on host host2, which is down/, 'clone', 'far');
    // host 2 has not said yet that it feeds nobody any more
    await refused(/feeds cluster/, 'delete', 'far', '--force');
    await lab().lab.healHost(2);
    await lab().hostsUp();
    expect(await info('far')).toMatchObject({ status: 'ready', hostUp: true });
  });

  it('is not there at all when the disk is full, or its writer or sfld is killed; the VM goes on', async () => {
    const master = await lab().seed({ ...MICRO, memoryMib: 384 }, { on: 2 });
    await using memory = await MemoryTest.start(lab(), master, { areaMib: LARGE_MIB, detached: true });
    const dir = `${lab().lab.hosts[1]?.dir ?? ''}/state/checkpoints`;
    await lab().lab.exec(2, ['mkdir', '-p', dir]);
    await lab().lab.exec(2, ['mount', '-t', 'tmpfs', '-o', 'size=16m,mode=700', TEST_DISK, dir]);
    try {
      const { status, err } = await checkpoint('create', master.name, 'full');
      expect({ status, err }).toEqual({
        status: 1,
        err: expect.stringMatching(/the disk of .* is full/) as string,
      });
      await eventually(FAILED_MS, 'the rest to be gone', async () =>
        expect((await lab().lab.exec(2, ['ls', '-A', dir])).stdout).toBe(''),
      );
    } finally {
      await lab().lab.exec(2, ['umount', dir]);
    }
    await expectGone(master, 'writer-killed', (pid) => Promise.resolve(void process.kill(pid, 'SIGKILL')));
    await expectGone(master, 'sfld-killed', async () => {
      await lab().killDaemon(2, 'sfld');
      await lab().lab.startDaemon(2, 'sfld');
      await lab().hostsUp();
    });
    const { ticket, clones } = await memory.fork(1);
    for (const clone of clones) await memory.expectRight(clone);
    await memory.merge(ticket);
  });

  /** A checkpoint that something ends while it is being written; its writer, which is held up meanwhile, is `pid`. */
  async function expectGone(master: Guest, name: string, end: (pid: number) => Promise<void>): Promise<void> {
    const made = checkpoint('create', master.name, name);
    const pid = await eventually(CREATE_MS, 'its writer to be there', async () => {
      const [found, ...others] = await lab().pids(2, 'memserver/main.ts', '/s/c-');
      if (found === undefined || others.length > 0) throw new Error(`writers: ${others.length}`);
      return found;
    });
    await sleep(WRITING_MS);
    process.kill(pid, 'SIGSTOP');
    expect(stored(2)).toEqual([expect.stringMatching(/^\.new-/)]);
    await end(pid);
    const { status, err } = await made;
    const said = expect.stringMatching(/no checkpoint/) as string;
    expect({ name, status, err }).toEqual({ name, status: 1, err: said });
    expect(await ok('list', '--json')).toBe('[]\n');
    await eventually(FAILED_MS, 'the rest to be gone', () => expect(stored(2)).toEqual([]));
  }
});
