// network_mode = 'auto': sfmd tries whether multicast reaches the hosts, says so, and forks go by what it found.

import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { memtapStatsSchema, type MemtapStats } from '@snowflock/replication';
import { eventually } from './support/deadline.ts';
import { getText } from './support/get-text.ts';
import type { Guest } from './support/guest.ts';
import { MemoryTest } from './support/memtest.ts';
import { requireVm } from './require-vm.ts';
import { MICRO, sharedLab } from './support/test-lab.ts';

const HOSTS = 5;
const FOUND_MS = 20_000;

describe.skipIf(!requireVm())("network_mode = 'auto'", () => {
  // a clone on each host: the parent's has room for two VMs
  const lab = sharedLab({ hosts: HOSTS, cpus: 2, ramMib: 1024, networkMode: 'auto' });
  const blocked = { table: 'inet mute', chain: 'inet mute in' };

  /** Bytes of the longest packet that each host heard, once sfmd has tried all of them. */
  async function heard(): Promise<number[]> {
    const socket = join(lab().lab.hosts[0]?.dir ?? '', 'master-run', 'sfmd.sock');
    return eventually(FOUND_MS, 'sfmd to have tried multicast', async () => {
      const lines = (await getText(socket, '/metrics'))
        .split('\n')
        .filter((line) => line.startsWith('snowflock_multicast_packet_bytes{'));
      expect(lines).toHaveLength(HOSTS);
      return lines.sort().map((line) => Number(line.split(' ').at(-1)));
    });
  }

  /** What the clones' memtaps got, and relays that ran, in a fork to all hosts whose memory is right. */
  async function forked(): Promise<{ taps: MemtapStats[]; relays: number }> {
    const master = await lab().seed({ ...MICRO, vcpus: 2 }, { on: 1 });
    const memory = await MemoryTest.start(lab(), master, { areaMib: 2 });
    const { ticket, clones } = await memory.fork(HOSTS - 1);
    await Promise.all(clones.map((clone) => memory.expectRight(clone)));
    const taps = await tapsOf(master);
    const relays = await Promise.all(
      lab().lab.hosts.map(async ({ k }) => (await lab().pids(k, 'memserver/main.ts', '/relay ')).length),
    );
    await memory.merge(ticket);
    await memory[Symbol.asyncDispose]();
    await lab().shutdown(master.clusterid);
    return { taps, relays: relays.reduce((sum, one) => sum + one, 0) };
  }

  async function tapsOf({ clusterid }: Guest): Promise<MemtapStats[]> {
    const records = await Promise.all(lab().lab.hosts.map(({ k }) => lab().clonesOn(k, clusterid)));
    return records.flat().map(({ replication }) => memtapStatsSchema.parse(replication));
  }

  it('uses multicast where all hosts of a fork hear it', async () => {
    for (const bytes of await heard()) expect(bytes).toBeGreaterThanOrEqual(1280);
    const { taps, relays } = await forked();
    expect(taps.map(({ multicast }) => multicast?.hears)).toEqual(Array(HOSTS - 1).fill(true));
    expect(relays).toBe(0);
  });

  it('has the hosts pass pages on where one of many hears none', async () => {
    const rules = `add table ${blocked.table}; add chain ${blocked.chain} { type filter hook input priority 0; }; add rule ${blocked.chain} ip daddr 224.0.0.0/4 drop`;
    await lab().lab.exec(3, ['nft', rules]);
    await lab().killDaemon(1, 'sfmd');
    await lab().lab.startDaemon(1, 'sfmd');
    await lab().hostsUp();
    const found = await heard();
    expect(found[2]).toBe(0);
    for (const bytes of found.toSpliced(2, 1)) expect(bytes).toBeGreaterThan(0);
    const { taps, relays } = await forked();
    expect(taps.map(({ multicast }) => multicast)).toEqual(Array(HOSTS - 1).fill(null));
    expect(relays).toBe(2);
  });
});
