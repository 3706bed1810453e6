// A second fork of a VM while clones of the first run: what has not changed since, and their hosts have, is not sent again; memory is right
// byte for byte, also where the VM writes all the while.

import { expect, describe, it } from 'vitest';
import { PAGE_BYTES } from '@snowflock/protocol';
import { memtapStatsSchema, type MemtapStats } from '@snowflock/replication';
import type { Guest } from './support/guest.ts';
import { MemoryTest } from './support/memtest.ts';
import { requireVm } from './require-vm.ts';
import { MICRO, sharedLab } from './support/test-lab.ts';

const RUN = requireVm();
const AREA_MIB = 16;
const AREA_PAGES = AREA_MIB * 256;

describe.skipIf(!RUN)('a second fork', () => {
  const lab = sharedLab({ hosts: 2, cpus: 6, ramMib: 2048 });

  /** What host 2 has fetched for a ticket. */
  async function tapOf({ clusterid }: Guest, ticket: string): Promise<MemtapStats> {
    const clone = (await lab().clonesOn(2, clusterid)).find((each) => each.ticket === ticket);
    return memtapStatsSchema.parse(clone?.replication);
  }

  it('has only what changed sent to a host that holds the first', async () => {
    const master = await lab().seed({ ...MICRO, memoryMib: 128 }, { on: 1 });
    await using memory = await MemoryTest.start(lab(), master, { areaMib: AREA_MIB, writer: true });
    const first = await memory.fork(2);
    for (const clone of first.clones) await memory.expectRight(clone);
    const second = await memory.fork(2);
    for (const clone of second.clones) await memory.expectRight(clone);
    const [one, two] = [await tapOf(master, first.ticket), await tapOf(master, second.ticket)];
    expect(one.nearPages).toBe(0);
    expect(one.wireBytesReceived).toBeGreaterThan(AREA_PAGES * PAGE_BYTES);
    expect(two.nearPages).toBeGreaterThan(0.9 * AREA_PAGES);
    expect(two.wireBytesReceived).toBeLessThan(0.5 * one.wireBytesReceived);

    // the first goes while the second has not got everything: that is fetched, and right
    const third = await memory.fork(2);
    await memory.merge(second.ticket);
    await memory.merge(first.ticket);
    for (const clone of third.clones) await memory.expectRight(clone);
    await memory.merge(third.ticket);
  });
});
