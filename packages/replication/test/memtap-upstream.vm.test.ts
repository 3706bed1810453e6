// A fork of a clone: its memserver serves what the clone wrote from the frozen process, all else from the memtap that the clone
// itself runs on. No page is wrong, nothing is fetched ahead of need, and an upstream that is gone is an error, never a wait.

import { randomBytes } from 'node:crypto';
import { readFileSync, writeFileSync } from 'node:fs';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { requireVm } from '../../../tests/require-vm.ts';
import { type FreezeResult, type MemserverProcess, type MemtapProcess } from '../src/index.ts';
import { Harness, type Stack } from './vm-harness.ts';

const PAGES = 256;
const SEED = 99;
const POLL_MS = 20_000;
/** Far less than the minute for which a source is looked for. */
const AT_ONCE_MS = 20_000;
/** Readers through two memtaps, on a busy machine. */

describe.skipIf(!requireVm(['root']))('the snapshot of a clone', () => {
  let harness: Harness;
  beforeEach(() => {
    harness = new Harness();
  });
  afterEach(() => harness[Symbol.asyncDispose]());

  interface Fork {
    readonly memserver: MemserverProcess;
    readonly memtap: MemtapProcess;
    readonly frozen: FreezeResult;
  }

  /** Forks a clone whose RAM is the file of `memtap`, of a snapshot with that presence map. */
  async function forkOver(
    { memtap: under, frozen: { presence } }: Pick<Stack, 'memtap' | 'frozen'>,
    seed: number,
  ): Promise<Fork> {
    const key = randomBytes(32);
    const memserver = await harness.memserver({ key });
    const { leasePath } = memserver;
    const over = under.ramPath;
    const source = await harness.source({ leasePath, pages: PAGES, seed, kind: 'mixed', over });
    const presencePath = `${memserver.controlPath}.presence`;
    writeFileSync(presencePath, presence);
    const frozen = await memserver.freeze({
      ...{ pid: source.pid, ramRanges: source.ranges },
      upstream: { ramPath: over, presencePath },
    });
    const memtap = await harness.memtap({ pages: PAGES });
    const sources = [{ address: '127.0.0.1', port: memserver.port }];
    await memtap.attach({ sources, key, presence: frozen.presence });
    return { memserver, memtap, frozen };
  }

  it('is what it wrote over what it was cloned with, at every depth', async () => {
    const stack = await harness.stack({ pages: PAGES, kind: 'mixed' });
    const first = await forkOver(stack, SEED);
    // Every third page, and two of four groups of sixteen (data, and zeros that were written).
    const kindOf = (page: number): number => Math.floor(page / 16) % 4;
    const present = Array.from({ length: PAGES }, (_, page) => page % 3 === 0 || kindOf(page) !== 0);
    expect(first.frozen.presentPages).toBe(present.filter(Boolean).length);
    // Nothing but what the clone touched is fetched for the fork's sake.
    const before = await stack.memtap.stats();
    const expected = overlaid(pattern(stack.seed, 'mixed'), SEED);
    expect(readFileSync(first.memtap.ramPath).equals(expected)).toBe(true);
    const after = await stack.memtap.stats();
    expect(after.demandPages + after.prefetchedPages).toBeGreaterThan(before.demandPages);
    const second = await forkOver(first, SEED + 2);
    expect(readFileSync(second.memtap.ramPath).equals(overlaid(expected, SEED + 2))).toBe(true);
    expect(await second.memserver.stats()).toMatchObject({ errors: 0, sourceLost: null });
    // Once more, with as little in the page cache as there can be.
    dropPageCache();
    const bytes = readFileSync(second.memtap.ramPath);
    expect(bytes.equals(overlaid(expected, SEED + 2))).toBe(true);
  });

  it('is lost with the memtap under it, which is said, and nobody waits', async () => {
    const stack = await harness.stack({ pages: PAGES, kind: 'dense' });
    const fork = await forkOver(stack, SEED);
    const lost = new Promise<string>((resolve) => fork.memtap.onSourceLost(({ reason }) => resolve(reason)));
    const told = new Promise<string>((resolve) =>
      fork.memserver.onSourceLost(({ reason }) => resolve(reason)),
    );
    process.kill(stack.memtap.pid, 'SIGKILL');
    await stack.memtap.exited;
    dropPageCache();
    expect(() => readFileSync(fork.memtap.ramPath)).toThrow(/EIO/);
    expect(await told).toMatch(/cannot be read from its memtap/);
    expect(await lost).toMatch(/sourceLost/);
  });

  it('ends at once while its reads wait for a source that does not answer', async () => {
    const stack = await harness.stack({ pages: PAGES, kind: 'dense', sourceTimeoutMs: 60_000 });
    const fork = await forkOver(stack, SEED);
    process.kill(stack.memserver.pid, 'SIGSTOP');
    harness.defer(() => void process.kill(stack.memserver.pid, 'SIGCONT'));
    const { done } = harness.startFaults([fork.memtap.ramPath, stack.seed, 'dense', 'rand', PAGES]);
    const held = async (): Promise<number> => (await stack.memtap.stats()).heldReads;
    await expect.poll(held, { timeout: POLL_MS }).toBeGreaterThan(0);
    const startedAtMs = performance.now();
    await fork.memserver.stop();
    expect(performance.now() - startedAtMs).toBeLessThan(AT_ONCE_MS);
    expect(await done).toMatchObject({ code: 7 }); // SIGBUS: its own source is gone
  });
});

function dropPageCache(): void {
  writeFileSync('/proc/sys/vm/drop_caches', '1');
}

/** What frozen-source.c writes. */
function pattern(seed: number, kind: 'mixed' | 'dense'): Buffer {
  const words = new Uint32Array(PAGES * 1024);
  for (let page = 0; page < PAGES; page++) {
    if (kind === 'mixed' && Math.floor(page / 16) % 4 < 2) continue;
    for (let word = 0; word < 1024; word++) words[page * 1024 + word] = wordOf(page, word, seed);
  }
  return Buffer.from(words.buffer);
}

function overlaid(under: Buffer, seed: number): Buffer {
  const all = Buffer.from(under);
  const words = new Uint32Array(all.buffer, all.byteOffset, all.length / 4);
  for (let page = 0; page < PAGES; page += 3)
    for (let word = 0; word < 1024; word++) words[page * 1024 + word] = wordOf(page, word, seed);
  return all;
}

function wordOf(page: number, word: number, seed: number): number {
  return Math.imul(page + 1, 2654435761) ^ Math.imul(word, 40503) ^ (seed << 8);
}
