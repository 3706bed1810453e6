// Which pages of a frozen process are those of an earlier one, by their frames: real processes, forked one after the other.

import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { requireVm } from '../../../tests/require-vm.ts';
import { unchangedPages } from '../src/memserver/unchanged-pages.ts';

const PAGES = 4096;
const PAGE_BYTES = 4096;

describe.skipIf(!requireVm(['root']))('pages that have not changed between two forks', () => {
  let directory: string;
  beforeAll(() => {
    directory = mkdtempSync(join(tmpdir(), 'snowflock-replication-'));
    const source = join(import.meta.dirname, 'forked-twice.c');
    execFileSync('gcc', ['-O2', '-Wall', '-Werror', '-o', join(directory, 'forked-twice'), source]);
  });
  afterAll(() => rmSync(directory, { recursive: true, force: true }));

  async function forkedTwice(): Promise<{
    first: number;
    second: number;
    start: number;
    [Symbol.asyncDispose](): Promise<void>;
  }> {
    const child = spawn(join(directory, 'forked-twice'), [String(PAGES)], {
      stdio: ['pipe', 'pipe', 'inherit'],
    });
    const [line] = (await once(child.stdout, 'data')) as [Buffer];
    const [first = '', second = '', start = ''] = line.toString().trim().split(' ');
    return {
      ...{ first: Number(first), second: Number(second), start: Number.parseInt(start, 16) },
      async [Symbol.asyncDispose]() {
        child.stdin.end();
        await once(child, 'exit');
      },
    };
  }

  it('are all that were neither written nor given back, and no other', async () => {
    await using forked = await forkedTwice();
    const { first, second, start } = forked;
    const ranges = [0, 1].map((half) => ({
      start: start + (half * PAGES * PAGE_BYTES) / 2,
      lengthBytes: (PAGES * PAGE_BYTES) / 2,
    }));
    const map = unchangedPages({ pid: second, earlierPid: first }, ranges);
    const pages = Array.from({ length: PAGES }, (_, page) => page);
    const taken = pages.filter((page) => map.has(page));
    const untouched = pages.filter((page) => page % 3 !== 0 && page % 7 !== 0);
    expect(taken.filter((page) => page % 3 === 0 || page % 7 === 0)).toEqual([]);
    // the kernel may move a frame at any time; few are moved within a second
    expect(taken.length).toBeGreaterThan(0.95 * untouched.length);
  });

  it('are none between processes that have nothing in common', async () => {
    await using one = await forkedTwice();
    await using other = await forkedTwice();
    const ranges = [{ start: one.start, lengthBytes: PAGES * PAGE_BYTES }];
    const same = one.start === other.start;
    const compare = (): number => unchangedPages({ pid: one.first, earlierPid: other.first }, ranges).count();
    if (same) expect(compare()).toBe(0);
    else expect(unchangedPages({ pid: one.first, earlierPid: process.pid }, ranges).count()).toBe(0);
  });

  it('are not asked of a process that is gone', async () => {
    const { first, second, start, ...rest } = await forkedTwice();
    await rest[Symbol.asyncDispose]();
    const ranges = [{ start, lengthBytes: PAGE_BYTES }];
    expect(() => unchangedPages({ pid: second, earlierPid: first }, ranges)).toThrow(/page map of process/);
  });
});
