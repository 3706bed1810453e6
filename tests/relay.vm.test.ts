// Hosts of a fork that pass pages on to each other: memory is right byte for byte, a page leaves the parent's host about once, and
// whatever becomes of what passes them on, those that it fed go on.

import { describe, expect, it } from 'vitest';
import { PAGE_BYTES } from '@snowflock/protocol';
import { memtapStatsSchema, type MemtapStats } from '@snowflock/replication';
import { z } from 'zod';
import type { Guest } from './support/guest.ts';
import { MemoryTest } from './support/memtest.ts';
import { requireVm } from './require-vm.ts';
import { MICRO, sharedLab } from './support/test-lab.ts';

const RUN = requireVm();
const AREA_MIB = 16;
const AREA_BYTES = AREA_MIB * 2 ** 20;
/** Of four hosts one has the parent: one of the others feeds the other two. */
const REMOTE = [2, 3, 4];

describe.skipIf(!RUN)('memory by way of other hosts', () => {
  const lab = sharedLab({ hosts: 4, cpus: 2, ramMib: 1024, networkMode: 'relay' });

  /** A clone on each host but the parent's. */
  async function forked(): Promise<{
    master: Guest;
    memory: MemoryTest;
    ticket: string;
    clones: Guest[];
  }> {
    const master = await lab().seed({ ...MICRO, vcpus: 1 }, { on: 1 });
    const memory = await MemoryTest.start(lab(), master, { areaMib: AREA_MIB, detached: true });
    const { ticket, clones } = await memory.fork(4);
    expect(clones).toHaveLength(4);
    return { master, memory, ticket, clones };
  }

  /** The relays that run, by host. */
  async function relays(): Promise<{ k: number; pid: number }[]> {
    const found = await Promise.all(
      REMOTE.map(async (k) =>
        (await lab().pids(k, 'memserver/main.ts', '/relay ')).map((pid) => ({ k, pid })),
      ),
    );
    return found.flat();
  }

  async function tapsOf({ clusterid }: Guest): Promise<MemtapStats[]> {
    const records = await Promise.all(REMOTE.map((k) => lab().clonesOn(k, clusterid)));
    return records.flat().map(({ replication }) => memtapStatsSchema.parse(replication));
  }

  it('is right, and leaves the host of the parent about once', async () => {
    const { master, memory, ticket, clones } = await forked();
    await Promise.all(clones.map((clone) => memory.expectRight(clone)));
    expect(await relays()).toHaveLength(1);
    const taps = await tapsOf(master);
    const gotBytes = taps.map(
      ({ demandPages, prefetchedPages }) => (demandPages + prefetchedPages) * PAGE_BYTES,
    );
    for (const bytes of gotBytes) expect(bytes).toBeGreaterThan(AREA_BYTES);
    // those below hear of what the others need, too
    for (const { push } of taps) expect(push.toldPages).toBeGreaterThan(0);
    const { sentBytes } = await lab().get(`/v1/sources/${ticket}`, z.object({ sentBytes: z.number() }));
    // what one of them fetched, and what only others needed; the clone beside the parent is fed by the same memserver
    const near = (await lab().clonesOn(1, master.clusterid)).map(({ replication }) =>
      memtapStatsSchema.parse(replication),
    );
    const remoteBytes = sentBytes - near.reduce((sum, tap) => sum + tap.wireBytesReceived, 0);
    expect(remoteBytes).toBeGreaterThan(AREA_BYTES);
    expect(remoteBytes).toBeLessThan(1.25 * Math.max(...gotBytes));
    await memory.merge(ticket);
    await memory[Symbol.asyncDispose]();
  });

  it('comes from the parent when what passes it on is killed', async () => {
    const { memory, ticket, clones } = await forked();
    const [relay, ...others] = await relays();
    expect(others).toEqual([]);
    process.kill(relay?.pid ?? Number.NaN, 'SIGKILL');
    await Promise.all(clones.map((clone) => memory.expectRight(clone)));
    await memory.merge(ticket);
    await memory[Symbol.asyncDispose]();
  });

  it('goes on over a kill of the sfld that passes it on, and of its memtap only its own clone dies', async () => {
    const { master, memory, ticket, clones } = await forked();
    const [relay] = await relays();
    const k = relay?.k ?? 0;
    await lab().killDaemon(k, 'sfld');
    await lab().lab.startDaemon(k, 'sfld');
    await lab().hostsUp();
    expect(await relays()).toEqual([relay]);
    await lab().killOne(k, 'memtap/main.ts');
    const placed = await lab().clonesOf(master, ticket);
    const isOn = ({ vmid }: Guest): boolean =>
      placed.find((each) => each.vmid === vmid)?.host === lab().lab.hosts[k - 1]?.name;
    for (const clone of clones.filter((each) => !isOn(each))) await memory.expectRight(clone);
    for (const clone of clones.filter(isOn))
      expect(await lab().endOf(clone, 'lost', 20_000)).toMatch(/memory can no longer be fetched/);
    await memory.merge(ticket);
    await memory[Symbol.asyncDispose]();
  });
});
