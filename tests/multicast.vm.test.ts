// mcdist between whole hosts: clones that all read what their parent wrote, over a network that loses packets and a link that is narrow.
// Their memory is right byte for byte, and what leaves the parent's host is counted: about once, not once for each host.

import { expect, describe, it } from 'vitest';
import { z } from 'zod';
import { PAGE_BYTES } from '@snowflock/protocol';
import { memtapStatsSchema, type MemtapStats } from '@snowflock/replication';
import { MemoryTest } from './support/memtest.ts';
import { requireVm } from './require-vm.ts';
import { MICRO, sharedLab } from './support/test-lab.ts';

const Served = z.object({
  multicast: z.object({ multicastPages: z.number(), multicastDatagrams: z.number() }),
});

const RUN = requireVm();
const HOSTS = 3;
const AREA_MIB = 16;
const AREA_BYTES = AREA_MIB * 2 ** 20;

describe.skipIf(!RUN)('memory by multicast', () => {
  const lab = sharedLab({ hosts: HOSTS, cpus: 4, ramMib: 1536, networkMode: 'multicast' });

  /** Of the fork's memserver: how many datagrams it took to send a page to all. */
  const datagramsPerPage = async (ticket: string): Promise<number> => {
    const asked = { method: 'GET', path: `/v1/sources/${ticket}`, reply: Served, timeoutMs: 10_000 } as const;
    const { multicast } = await lab().lab.client(1).request(asked);
    return multicast.multicastDatagrams / multicast.multicastPages;
  };

  it('is right, and goes in whole pages, where no packet is lost', async () => {
    const master = await lab().seed(MICRO, { on: 1 });
    await using memory = await MemoryTest.start(lab(), master, { areaMib: AREA_MIB });
    const { ticket, clones } = await memory.fork(HOSTS);
    await Promise.all(clones.map((clone) => memory.expectRight(clone)));
    expect(await datagramsPerPage(ticket)).toBeLessThan(1.2);
    await memory.merge(ticket);
  });

  it('is right, and leaves the parent about once, with 5 % of packets lost and a link of 100 Mbit/s', async () => {
    const master = await lab().seed(MICRO, { on: 1 });
    await using memory = await MemoryTest.start(lab(), master, { areaMib: AREA_MIB });
    await lab().lab.shapeLink(2, { dropPercent: 5 });
    await lab().lab.shapeLink(3, { rateMbit: 100 });
    const { ticket, clones } = await memory.fork(HOSTS);
    await Promise.all(clones.map((clone) => memory.expectRight(clone)));

    const taps: MemtapStats[] = [];
    for (let k = 1; k <= HOSTS; k++)
      for (const { replication } of await lab().clonesOn(k, master.clusterid))
        taps.push(memtapStatsSchema.parse(replication));
    expect(taps.map(({ multicast }) => multicast?.hears)).toEqual([true, true, true]);
    const unicastBytes = taps.reduce((sum, { wireBytesReceived }) => sum + wireBytesReceived, 0);
    // its own host gets all that it sends to everyone
    const multicastBytes = Math.max(...taps.map(({ multicast }) => multicast?.bytes ?? 0));
    const gotBytes = taps.reduce(
      (sum, { demandPages, prefetchedPages }) => sum + (demandPages + prefetchedPages) * PAGE_BYTES,
      0,
    );
    // by unicast every host's bytes leave the parent
    expect(gotBytes).toBeGreaterThan(HOSTS * AREA_BYTES);
    expect(multicastBytes).toBeGreaterThan(0.7 * AREA_BYTES);
    expect(unicastBytes + multicastBytes).toBeLessThan(0.65 * gotBytes);
    // lost fragments would have taken whole pages with them
    expect(await datagramsPerPage(ticket)).toBeGreaterThan(2);
    await memory.merge(ticket);
  });
});
