// Pages that come because others needed them: real memservers and memtaps, real FUSE.

import { randomBytes } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { MemtapProcess } from '../src/index.ts';
import { Harness } from './vm-harness.ts';

const PAGES = 16_384;
const SEED = 5;
/** Of PushBudget. */
const EARLIER_TRUST_PAGES = 4096;

describe('pushed pages', () => {
  let harness: Harness;
  beforeAll(() => {
    harness = new Harness();
  });
  afterAll(async () => {
    await harness[Symbol.asyncDispose]();
  });

  /** A fork of the same memory, whose memserver knows what an earlier one's clones needed; `hosts` attached to it. */
  async function fork(hosts: number, needs: Buffer | undefined) {
    const key = randomBytes(32);
    const memserver = await harness.memserver({ key, needs });
    const { leasePath, port } = memserver;
    const source = await harness.source({ leasePath, pages: PAGES, seed: SEED, kind: 'dense' });
    const { presence } = await memserver.freeze({ pid: source.pid, ramRanges: source.ranges });
    const memtaps: MemtapProcess[] = [];
    for (let host = 0; host < hosts; host++) {
      const memtap = await harness.memtap({ pages: PAGES });
      await memtap.attach({ sources: [{ address: '127.0.0.1', port }], key, presence });
      await memtap.push();
      memtaps.push(memtap);
    }
    const [first, second] = memtaps;
    if (!first) throw new Error('no host');
    return { memserver, first, second };
  }

  const faults = async (memtap: MemtapProcess, order: 'rand' | 'seq', pages: number): Promise<void> => {
    const result = await harness.faults([memtap.ramPath, SEED, 'dense', order, pages]);
    expect(result).toMatchObject({ wrong: 0 });
  };

  const settled = async (memtap: MemtapProcess): Promise<number> => {
    let before = -1;
    for (;;) {
      const { pushedPages } = (await memtap.stats()).push;
      if (pushedPages === before) return pushedPages;
      before = pushedPages;
      await sleep(200);
    }
  };

  it('are those that clones of an earlier fork needed, in their order, as long as they are used', async () => {
    const earlier = await fork(1, Buffer.alloc(0));
    await faults(earlier.first, 'rand', 8192);
    expect((await earlier.first.stats()).push).toMatchObject({ toldPages: 0, pushedPages: 0 });
    const { needs } = await earlier.memserver.learnt();
    expect(needs.length).toBeGreaterThanOrEqual(4 * 8192);

    const { first: memtap } = await fork(1, needs);
    // on trust, before anybody asked for anything; and no further
    await expect.poll(() => settled(memtap)).toBe(EARLIER_TRUST_PAGES);
    await faults(memtap, 'rand', 8192);
    const stats = await memtap.stats();
    expect(stats.push.pushedPages).toBeGreaterThan(1.5 * EARLIER_TRUST_PAGES);
    expect(stats.push.usedPages).toBeGreaterThan(stats.push.pushedPages / 2);
    expect(stats.demandReads).toBeLessThan((await earlier.first.stats()).demandReads * 0.7);
    expect(stats.droppedPages).toBe(0);
  });

  it('come to an end where clones do something else', async () => {
    const earlier = await fork(1, Buffer.alloc(0));
    await faults(earlier.first, 'seq', 8192);
    const needs = (await earlier.memserver.learnt()).needs;
    // the same number of pages, of the other half
    const other = Buffer.from(
      Uint32Array.from({ length: needs.length / 4 }, (_, page) => 8192 + (page % 8192)).buffer,
    );
    const { first: memtap } = await fork(1, other);
    await faults(memtap, 'seq', 2048);
    expect(await settled(memtap)).toBeLessThanOrEqual(EARLIER_TRUST_PAGES);
    expect((await memtap.stats()).push.usedPages).toBe(0);
  });

  it('are those that clones of other hosts need now', async () => {
    const { first, second } = await fork(2, Buffer.alloc(0));
    if (!second) throw new Error('no second host');
    await faults(first, 'rand', 256);
    await expect.poll(async () => (await second.stats()).push.pushedPages).toBeGreaterThan(200);
    await faults(second, 'rand', 256);
    expect((await second.stats()).demandReads).toBeLessThan((await first.stats()).demandReads * 0.75);
  });

  it('do not come when the memserver was not told to', async () => {
    const { first, second, memserver } = await fork(2, undefined);
    if (!second) throw new Error('no second host');
    await faults(first, 'rand', 256);
    await sleep(300);
    expect((await second.stats()).push).toMatchObject({ toldPages: 0, pushedPages: 0 });
    expect((await memserver.learnt()).needs).toHaveLength(0);
  });
});
