// Frozen process -> memserver -> memtap -> private mapping of another process, all real.

import { execFileSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import {
  closeSync,
  openSync,
  readFileSync,
  readSync,
  statSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { open } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { PAGE_BYTES, REHEARSAL_PAGES } from '@snowflock/protocol/pages';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { requireVm } from '../../../tests/require-vm.ts';
import { isMounted, MemserverProcess, MemtapProcess } from '../src/index.ts';
import { Harness } from './vm-harness.ts';

/** Far longer than it takes to start them, however busy the machine is. */
const ORPHAN_MS = 3000;
const PAGES = 8192;

describe.skipIf(!requireVm(['root', 'fuse']))('memserver and memtap', () => {
  let harness: Harness;
  beforeEach(() => {
    harness = new Harness();
  });
  afterEach(async () => {
    await harness[Symbol.asyncDispose]();
    // whatever a test started is gone with it
    expect(readFileSync('/proc/self/mountinfo', 'utf8')).not.toContain(harness.directory);
    expect(processesUsing(harness.directory)).toEqual([]);
  });

  it('serve the frozen memory byte for byte, to four readers at once', async () => {
    const { memtap, memserver, seed, frozen } = await harness.stack({ pages: PAGES, kind: 'mixed' });
    expect(frozen.presentPages).toBe((PAGES * 3) / 4);
    const readers = [1, 2, 3, 4].map(async (order) =>
      harness.faults([
        memtap.ramPath,
        seed,
        'mixed',
        order % 2 === 0 ? 'seq' : 'rand',
        PAGES,
        `order=${order}`,
      ]),
    );
    for (const result of await Promise.all(readers)) expect(result).toMatchObject({ pages: PAGES, wrong: 0 });
    const stats = await memtap.stats();
    // one page cache: each data page crossed the wire about once (a window takes along what lies within it), holes and
    // zero pages never
    const dataPages = PAGES / 2;
    expect(stats.demandPages + stats.prefetchedPages).toBeGreaterThanOrEqual(dataPages);
    expect(stats.wireBytesReceived).toBeLessThan(dataPages * 4096 * 1.3);
    expect(stats).toMatchObject({ sourceLost: null, heldReads: 0, droppedPages: 0 });
    expect(await memserver.stats()).toMatchObject({ clients: 2, errors: 0, sourceLost: null });
    const arrived = await memtap.arrived();
    expect([arrived.ram.count(), arrived.disk.count()]).toEqual([dataPages, 0]);
  });

  it('say which pages were touched, when nothing is fetched ahead', async () => {
    const TOUCHED = 1024;
    const { memtap, seed } = await harness.stack({ pages: 2 * TOUCHED, kind: 'dense' });
    await memtap.set({ minWindowPages: 0, maxWindowPages: 0 });
    expect((await memtap.arrived()).ram.count()).toBe(0);
    const half = { pages: TOUCHED, wrong: 0 };
    expect(await harness.faults([memtap.ramPath, seed, 'dense', 'seq', TOUCHED])).toMatchObject(half);
    const { ram } = await memtap.arrived();
    expect([ram.count(), ram.next(0, false)]).toEqual([TOUCHED, TOUCHED]);
  });

  it('serve two memtaps from one memserver', async () => {
    const { memtap, memserver, seed, frozen, key } = await harness.stack({ pages: PAGES, kind: 'dense' });
    const second = await harness.memtap({ pages: PAGES });
    const sources = [{ address: '127.0.0.1', port: memserver.port }];
    await second.attach({ sources, key, presence: frozen.presence });
    const results = await Promise.all(
      [memtap, second].map(async (tap) => harness.faults([tap.ramPath, seed, 'dense', 'rand', PAGES])),
    );
    for (const result of results) expect(result).toMatchObject({ pages: PAGES, wrong: 0 });
  });

  it('answer read(2) of any size and place as the memory is', async () => {
    const { memtap, seed } = await harness.stack({ pages: 512, kind: 'mixed' });
    const expected = patternOf(512, seed);
    const fd = openSync(memtap.ramPath, 'r');
    const target = Buffer.alloc(600_000);
    for (const [position, length] of [
      [0, 1],
      [4095, 2],
      [123_456, 500_000],
      [512 * 4096 - 10, 100],
      [512 * 4096, 10],
    ] as const) {
      const read = readSync(fd, target, 0, length, position);
      expect(read).toBe(Math.min(length, Math.max(0, expected.length - position)));
      expect(target.subarray(0, read).equals(expected.subarray(position, position + read))).toBe(true);
    }
    closeSync(fd);
    // past the page cache, which asks with offsets and sizes of its own
    const direct = execFileSync('dd', [`if=${memtap.ramPath}`, 'iflag=direct', 'bs=12800', 'status=none'], {
      maxBuffer: 4 << 20,
    });
    expect(direct.equals(expected)).toBe(true);
  });

  it('let nobody write', async () => {
    const { memtap } = await harness.stack({ pages: 16, kind: 'mixed' });
    const fd = openSync(memtap.ramPath, 'r+');
    expect(() => writeSync(fd, 'x', 0)).toThrow(/EROFS/);
    closeSync(fd);
    expect(() => truncateSync(memtap.ramPath, 0)).toThrow(/EROFS/);
    expect(() => execFileSync('fallocate', ['-p', '-l', '4096', memtap.ramPath], { stdio: 'pipe' })).toThrow(
      /supported/,
    );
    expect(statSync(memtap.ramPath).size).toBe(16 * 4096);
  });

  it('leave read-ahead to themselves, also where sysfs may not be written to', async () => {
    const { memtap } = await harness.stack({ pages: 16, kind: 'mixed' });
    const device = statSync(memtap.ramPath, { bigint: true }).dev;
    const name = `${(device >> 8n) & 0xfffn}:${device & 0xffn}`;
    expect(readFileSync(`/sys/class/bdi/${name}/read_ahead_kb`, 'utf8').trim()).toBe('4');
  });

  it('hold reads until attached', async () => {
    const key = randomBytes(32);
    const memserver = await harness.memserver({ key });
    const source = await harness.source({
      leasePath: memserver.leasePath,
      pages: 64,
      seed: 3,
      kind: 'mixed',
    });
    const memtap = await harness.memtap({ pages: 64 });
    const faulting = harness.startFaults([memtap.ramPath, 3, 'mixed', 'rand', 64]);
    await expect.poll(async () => (await memtap.stats()).heldReads).toBe(1);
    const { presence } = await memserver.freeze({ pid: source.pid, ramRanges: source.ranges });
    await memtap.attach({ sources: [{ address: '127.0.0.1', port: memserver.port }], key, presence });
    expect(await faulting.done).toMatchObject({ code: 0 });
    await expect(memtap.attach({ sources: [{ address: 'x', port: 1 }], key, presence })).rejects.toThrow(
      /already/,
    );
  });

  it('connected ahead, fetch the moment that the source freezes', async () => {
    const key = randomBytes(32);
    const memserver = await harness.memserver({ key });
    const source = await harness.source({
      leasePath: memserver.leasePath,
      pages: 256,
      seed: 3,
      kind: 'dense',
    });
    const memtap = await harness.memtap({ pages: 256 });
    const sources = [{ address: '127.0.0.1', port: memserver.port }];
    const prefetch = Array.from({ length: 32 }, (_, page) => page * 2);
    await memtap.connect({ sources, key, prefetch });
    await expect.poll(async () => (await memserver.stats()).clients).toBe(2);
    // the rehearsal went the whole way, and left RAM alone
    await memtap.rehearsed(20_000);
    const { demandReads } = await memtap.stats();
    expect(demandReads).toBeGreaterThan(0);
    await sleep(200);
    expect(await memtap.stats()).toMatchObject({ demandReads });
    const rehearsal = statSync(join(memtap.mountPath, 'rehearsal'));
    expect(rehearsal.size).toBe(REHEARSAL_PAGES * PAGE_BYTES);
    const faulting = harness.startFaults([memtap.ramPath, 3, 'dense', 'rand', 256]);
    await expect.poll(async () => (await memtap.stats()).heldReads).toBeGreaterThan(0);
    const { presence } = await memserver.freeze({ pid: source.pid, ramRanges: source.ranges });
    expect(await faulting.done).toMatchObject({ code: 0 });
    await memtap.attach({ sources, key, presence, prefetch });
    const stats = await memtap.stats();
    expect(stats).toMatchObject({ attached: true, reconnects: 0, sourceLost: null });
    // what the rehearsal fetched is not counted
    expect(stats.wireBytesReceived).toBeLessThan(300 * PAGE_BYTES);
    expect(stats.wireBytesReceived).toBeGreaterThan(250 * PAGE_BYTES);
    expect((await memserver.stats()).clients).toBe(2);
  });

  it('fetch first what loading a device state will need, with what reading it would bring along', async () => {
    const key = randomBytes(32);
    const memserver = await harness.memserver({ key });
    const { leasePath, port } = memserver;
    const source = await harness.source({ leasePath, pages: 2048, seed: 3, kind: 'dense' });
    const memtap = await harness.memtap({ pages: 2048 });
    // as QEMU has it: of a file that nobody has opened the kernel keeps no pages
    await using _ram = await open(memtap.ramPath);
    const prefetch = Array.from({ length: 20 }, (_, index) => index * 100);
    await memtap.connect({ sources: [{ address: '127.0.0.1', port }], key, prefetch });
    await memtap.rehearsed(20_000);
    await memserver.freeze({ pid: source.pid, ramRanges: source.ranges });
    const arrived = async (): Promise<number[]> => {
      const { ram } = await memtap.arrived();
      return Array.from({ length: 2048 }, (_, page) => page).filter((page) => ram.has(page));
    };
    const first = prefetch.slice(0, 16).flatMap((page) => [page, page + 1, page + 2, page + 3]);
    await expect.poll(arrived).toEqual(first);
  });

  it('outlive a source that was connected ahead and never came, and take the one of the attach', async () => {
    const key = randomBytes(32);
    const memserver = await harness.memserver({ key });
    const source = await harness.source({
      leasePath: memserver.leasePath,
      pages: 64,
      seed: 3,
      kind: 'dense',
    });
    const memtap = await harness.memtap({ pages: 64, sourceTimeoutMs: 300 });
    await memtap.connect({ sources: [{ address: '127.0.0.1', port: 1 }], key });
    await sleep(1000);
    expect(await memtap.stats()).toMatchObject({ attached: false, sourceLost: null });
    const { presence } = await memserver.freeze({ pid: source.pid, ramRanges: source.ranges });
    await memtap.attach({ sources: [{ address: '127.0.0.1', port: memserver.port }], key, presence });
    expect(await harness.faults([memtap.ramPath, 3, 'dense', 'rand', 64])).toMatchObject({ wrong: 0 });
    expect(await memtap.stats()).toMatchObject({ attached: true, sourceLost: null });
  });

  it('fetch pages that nobody has read yet when they are told to', async () => {
    const { memtap, seed } = await harness.stack({ pages: 64, kind: 'dense' });
    await memtap.prefetch(Array.from({ length: 32 }, (_, page) => page));
    await expect.poll(async () => (await memtap.stats()).prefetchedPages).toBe(32);
    expect(await memtap.stats()).toMatchObject({ demandReads: 0, demandPages: 0 });
    expect(await harness.faults([memtap.ramPath, seed, 'dense', 'seq', 64])).toMatchObject({ wrong: 0 });
  });

  it('fetch again what the page cache dropped', async () => {
    const { memtap, seed } = await harness.stack({ pages: PAGES, kind: 'dense' });
    for (let round = 0; round < 3; round++)
      expect(await harness.faults([memtap.ramPath, seed, 'dense', 'rand', PAGES, 'drop'])).toMatchObject({
        wrong: 0,
      });
    const running = harness.faults([memtap.ramPath, seed, 'dense', 'seq', PAGES]);
    for (let round = 0; round < 5; round++) writeFileSync('/proc/sys/vm/drop_caches', '1');
    expect(await running).toMatchObject({ wrong: 0 });
    const { demandPages, prefetchedPages } = await memtap.stats();
    expect(demandPages + prefetchedPages).toBeGreaterThan(2 * PAGES);
  });

  it('fetch little for scattered faults and much at a time for a stream', async () => {
    const scattered = await harness.stack({ pages: 65536, kind: 'dense' });
    await harness.faults([scattered.memtap.ramPath, scattered.seed, 'dense', 'rand', 500]);
    const few = await scattered.memtap.stats();
    expect(few.wireBytesReceived).toBeLessThan(500 * 4096 * 5);
    const stream = await harness.stack({ pages: PAGES, kind: 'dense' });
    await harness.faults([stream.memtap.ramPath, stream.seed, 'dense', 'seq', PAGES]);
    const many = await stream.memtap.stats();
    expect(many.demandReads).toBeLessThan(PAGES / 64);
    expect(many.wireBytesReceived).toBeLessThan(PAGES * 4096 * 1.02);
  });

  it('serve a snapshot of several RAM ranges as one file', async () => {
    const key = randomBytes(32);
    const memserver = await harness.memserver({ key });
    const source = await harness.source({
      leasePath: memserver.leasePath,
      pages: 100,
      seed: 5,
      kind: 'dense',
    });
    const start = Number.parseInt(source.ranges[0]?.start ?? '', 16);
    const ramRanges = [
      { start: (start + 40 * 4096).toString(16), length: 60 * 4096 },
      { start: `0x${start.toString(16)}`, length: 40 * 4096 },
    ];
    const { presence } = await memserver.freeze({ pid: source.pid, ramRanges });
    const memtap = await harness.memtap({ pages: 100 });
    await memtap.attach({ sources: [{ address: '127.0.0.1', port: memserver.port }], key, presence });
    const pattern = patternOf(100, 5, 'dense');
    const expected = Buffer.concat([pattern.subarray(40 * 4096), pattern.subarray(0, 40 * 4096)]);
    expect(readFileSync(memtap.ramPath).equals(expected)).toBe(true);
  });

  it('refuse a process without a lease, a second snapshot, and nonsense', async () => {
    const memserver = await harness.memserver({ key: randomBytes(32) });
    const ramRanges = [{ start: '1000', length: 4096 }];
    await expect(memserver.freeze({ pid: process.pid, ramRanges })).rejects.toMatchObject({
      code: 'source-lost',
    });
    await expect(
      memserver.freeze({ pid: 1, ramRanges: [{ start: '1001', length: 4096 }] }),
    ).rejects.toMatchObject({
      code: 'bad-request',
    });
    const source = await harness.source({
      leasePath: memserver.leasePath,
      pages: 16,
      seed: 3,
      kind: 'mixed',
    });
    const { presentPages } = await memserver.freeze({ pid: source.pid, ramRanges: source.ranges });
    expect(presentPages).toBe(0); // a group of holes
    await expect(memserver.freeze({ pid: source.pid, ramRanges: source.ranges })).rejects.toThrow(/already/);
  });

  it('outlive their supervisor, serve its successor, and leave when orphaned', async () => {
    const { memtap, memserver, seed } = await harness.stack({ pages: 64, kind: 'mixed' });
    memtap.detach();
    memserver.detach();
    const again = await MemtapProcess.attachTo(memtap);
    const server = await MemserverProcess.attachTo(memserver);
    expect(await harness.faults([again.ramPath, seed, 'mixed', 'rand', 64])).toMatchObject({ wrong: 0 });
    expect(await server.stats()).toMatchObject({ clients: 2 });
    await again.stop();
    await server.stop();
    const orphan = await harness.memtap({ pages: 16, orphanMs: ORPHAN_MS });
    const orphanServer = await harness.memserver({ key: randomBytes(32), orphanMs: ORPHAN_MS });
    await sleep(1.5 * ORPHAN_MS);
    expect(isMounted(orphan.mountPath)).toBe(true);
    orphan.detach();
    orphanServer.detach();
    expect(await orphan.exited).toEqual({ code: 0, signal: null });
    expect(await orphanServer.exited).toEqual({ code: 0, signal: null });
    expect(isMounted(orphan.mountPath)).toBe(false);
  });

  it('say clearly what is missing without /dev/fuse', () => {
    const main = new URL('../src/memtap/main.ts', import.meta.url).pathname;
    const args = ['--control', harness.path('c'), '--mount', harness.path('m'), '--ram-bytes', '4096'];
    const command = `mount -t tmpfs none /dev && exec "$0" "$@"`;
    expect(() =>
      execFileSync('unshare', ['-m', 'sh', '-c', command, process.execPath, main, ...args], {
        stdio: 'pipe',
      }),
    ).toThrow(/cannot open \/dev\/fuse.*modprobe fuse/);
  });
});

/** What frozen-source.c wrote. */
function patternOf(pages: number, seed: number, kind: 'mixed' | 'dense' = 'mixed'): Buffer {
  const words = new Uint32Array(pages * 1024);
  for (let page = 0; page < pages; page++) {
    if (kind === 'mixed' && Math.floor(page / 16) % 4 < 2) continue;
    for (let word = 0; word < 1024; word++)
      words[page * 1024 + word] = Math.imul(page + 1, 2654435761) ^ Math.imul(word, 40503) ^ (seed << 8);
  }
  return Buffer.from(words.buffer);
}

function processesUsing(text: string): string[] {
  return execFileSync('ps', ['-eo', 'pid,args'], { encoding: 'utf8' })
    .split('\n')
    .filter((line) => line.includes(text) && !line.includes(' ps -eo'));
}
