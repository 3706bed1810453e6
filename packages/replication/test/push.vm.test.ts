// Pages that come because others needed them: real memservers and memtaps, real FUSE.

import { randomBytes } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { closeSync, openSync, writeFileSync } from 'node:fs';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { MemserverProcess, MemtapProcess } from '../src/index.ts';
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
      opened(memtap);
      await memtap.push();
      memtaps.push(memtap);
    }
    const [first, second] = memtaps;
    if (!first) throw new Error('no host');
    return { memserver, key, port, presence, first, second };
  }

  /** As a QEMU has it: only what somebody has open the kernel takes pages of. */
  function opened(memtap: MemtapProcess): void {
    const fd = openSync(memtap.ramPath, 'r');
    harness.defer(() => closeSync(fd));
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
    // what it hears of is here already
    expect((await earlier.first.stats()).push).toMatchObject({ pushedPages: 0, heldBackPages: 0 });
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

  /** Hosts below `above`, which its relay feeds, and the memserver if it fails. */
  async function below(
    above: MemtapProcess,
    { hosts, fork: { key, port, presence } }: { hosts: number; fork: Awaited<ReturnType<typeof fork>> },
  ): Promise<{ relay: MemserverProcess; fed: MemtapProcess[] }> {
    const relay = await harness.memserver({ key });
    const presencePath = harness.path(`presence${relay.port}`);
    writeFileSync(presencePath, presence);
    await relay.relay({ ramPath: above.ramPath, presencePath, controlPath: above.controlPath });
    const sources = [relay.port, port].map((each) => ({ address: '127.0.0.1', port: each }));
    const fed: MemtapProcess[] = [];
    for (let host = 0; host < hosts; host++) {
      const memtap = await harness.memtap({ pages: PAGES });
      await memtap.attach({ sources, key, presence });
      opened(memtap);
      await memtap.push();
      fed.push(memtap);
    }
    return { relay, fed };
  }

  /** The parent feeds the first, that the second and the third, and the second the fourth. */
  async function tree(needs: Buffer) {
    const top = await fork(1, needs);
    const { relay, fed } = await below(top.first, { hosts: 2, fork: top });
    const [second, third] = fed;
    if (!second || !third) throw new Error('no host below');
    const [fourth] = (await below(second, { hosts: 1, fork: top })).fed;
    if (!fourth) throw new Error('no host at the third level');
    return { memserver: top.memserver, relay, first: top.first, second, third, fourth };
  }

  it('come at every level of a tree of relays, and leave the parent once', async () => {
    const earlier = await fork(1, Buffer.alloc(0));
    await faults(earlier.first, 'rand', 8192);
    const { needs } = await earlier.memserver.learnt();

    const { memserver, relay, first, second, third, fourth } = await tree(needs);
    for (const memtap of [first, second, third, fourth]) {
      await expect.poll(() => settled(memtap)).toBe(EARLIER_TRUST_PAGES);
      expect(await memtap.stats()).toMatchObject({ demandReads: 0, reconnects: 0, droppedPages: 0 });
    }
    const oneCopyBytes = EARLIER_TRUST_PAGES * 4096;
    expect((await memserver.stats()).sentBytes).toBeLessThan(1.1 * oneCopyBytes);
    expect((await relay.stats()).sentBytes).toBeLessThan(2.2 * oneCopyBytes);
    // nothing of it was a need of theirs
    expect((await memserver.learnt()).needs).toEqual(needs);
    await Promise.all([third, first].map((memtap) => faults(memtap, 'rand', 8192)));
  });

  it('come from any host of a tree of relays to the others, and to the next fork', async () => {
    const { memserver, first, third, fourth } = await tree(Buffer.alloc(0));
    await faults(fourth, 'rand', 256);
    await expect.poll(async () => (await third.stats()).push.pushedPages).toBeGreaterThan(200);
    await expect.poll(async () => (await third.stats()).heldReads).toBe(0);
    await faults(third, 'rand', 256);
    expect((await third.stats()).demandReads).toBeLessThan((await fourth.stats()).demandReads * 0.75);
    // they are in the page cache of the host above both
    await faults(first, 'rand', 256);
    expect((await first.stats()).push.toldPages).toBeGreaterThan(256);
    expect((await memserver.learnt()).needs.length).toBeGreaterThanOrEqual(4 * 256);
    expect((await memserver.learnt()).needs.length / 4).toBeLessThan(2048);
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
