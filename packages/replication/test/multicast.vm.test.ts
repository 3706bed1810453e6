// One memserver and several memtaps with multicast between them, all real, on the loopback interface.

import { randomBytes } from 'node:crypto';
import { closeSync, openSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { MEMBER_TIMEOUT_MS } from '../src/mcdist/sender.ts';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { requireVm } from '../../../tests/require-vm.ts';
import type { MemserverProcess, MemserverStats, MemtapProcess } from '../src/index.ts';
import { Harness } from './vm-harness.ts';

const PAGES = 4096;
/** Half of the pages of a 'mixed' source have something in them. */
const DATA_BYTES = (PAGES / 2) * 4096;
const ADDRESS = '127.0.0.1';

describe.skipIf(!requireVm(['root', 'fuse']))('memserver and memtaps with multicast', () => {
  let harness: Harness;
  beforeEach(() => {
    harness = new Harness();
  });
  afterEach(async () => {
    await harness[Symbol.asyncDispose]();
  });

  /** A frozen source and `count` memtaps that hear its memserver. */
  async function fork(count: number): Promise<{
    taps: MemtapProcess[];
    seed: number;
    multicast: () => Promise<NonNullable<MemserverStats['multicast']>>;
  }> {
    const [key, seed] = [randomBytes(32), 11];
    const memserver = await harness.memserver({ key, multicastAddress: ADDRESS });
    const taps = await Promise.all(Array.from({ length: count }, () => harness.memtap({ pages: PAGES })));
    const sources = [{ address: ADDRESS, port: memserver.port }];
    for (const tap of taps) await tap.connect({ sources, key, multicastAddress: ADDRESS });
    const multicast = async (): Promise<NonNullable<MemserverStats['multicast']>> => {
      const { multicast: figures } = await memserver.stats();
      if (figures === null) throw new Error('the memserver was told to');
      return figures;
    };
    await expect.poll(async () => (await multicast()).multicastMembers).toBe(count);
    await rehearsed(memserver);
    const source = await harness.source({
      leasePath: memserver.leasePath,
      pages: PAGES,
      seed,
      kind: 'mixed',
    });
    const { presence } = await memserver.freeze({ pid: source.pid, ramRanges: source.ranges });
    for (const tap of taps) await tap.attach({ sources, key, presence, multicastAddress: ADDRESS });
    return { taps, seed, multicast };
  }

  /** Bytes that the memtaps got over their lanes since the fork. */
  const unicastOf = async (taps: readonly MemtapProcess[]): Promise<number> => {
    const all = await Promise.all(taps.map((tap) => tap.stats()));
    return all.reduce((sum, { wireBytesReceived }) => sum + wireBytesReceived, 0);
  };

  /** Resolves when nobody has asked for anything for a moment. */
  async function rehearsed(memserver: MemserverProcess): Promise<void> {
    for (let before = -1; ;) {
      const { requests } = await memserver.stats();
      if (requests === before) return;
      before = requests;
      await sleep(300);
    }
  }

  const read = (
    tap: MemtapProcess,
    seed: number,
    order = 'rand',
  ): Promise<{ wrong: number; pages: number }> => harness.faults([tap.ramPath, seed, 'mixed', order, PAGES]);

  it('send each page about once to four hosts that all need it', async () => {
    const { taps, seed, multicast } = await fork(4);
    for (const result of await Promise.all(taps.map((tap) => read(tap, seed))))
      expect(result).toMatchObject({ pages: PAGES, wrong: 0 });
    const unicastBytes = await unicastOf(taps);
    const { multicastBytes } = await multicast();
    expect(multicastBytes).toBeGreaterThan(0.8 * DATA_BYTES);
    expect(unicastBytes + multicastBytes).toBeLessThan(1.5 * DATA_BYTES);
  });

  it('bring pages to a host that nobody there has asked for', async () => {
    const { taps, seed } = await fork(2);
    const [asks, hears] = taps;
    if (asks === undefined || hears === undefined) throw new Error('two memtaps');
    // as the VM that waits there does: the kernel keeps pages only of files that it has looked up
    const file = openSync(hears.ramPath, 'r');
    harness.defer(() => closeSync(file));
    expect(await read(asks, seed)).toMatchObject({ wrong: 0 });
    await sleep(100);
    const before = await hears.stats();
    expect(before.multicast?.unaskedPages).toBeGreaterThan((PAGES / 2) * 0.9);
    const alone = await unicastOf([hears]);
    expect(await read(hears, seed)).toMatchObject({ wrong: 0 });
    expect((await unicastOf([hears])) - alone).toBeLessThan(0.1 * DATA_BYTES);
  });

  it('go on by unicast when the others are gone', async () => {
    const { taps, seed, multicast } = await fork(2);
    const [stays, goes] = taps;
    if (stays === undefined || goes === undefined) throw new Error('two memtaps');
    await goes.stop();
    await expect
      .poll(async () => (await multicast()).multicastMembers, { timeout: 6 * MEMBER_TIMEOUT_MS })
      .toBe(1);
    expect(await read(stays, seed)).toMatchObject({ wrong: 0 });
    expect((await multicast()).multicastPages).toBe(0);
    expect(await unicastOf([stays])).toBeGreaterThan(DATA_BYTES);
  });
});
