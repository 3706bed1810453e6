// Processes that die under a fork: who is hurt is said with a reason within seconds, all others go on, and a merge frees all.

import { describe, expect, it } from 'vitest';
import { ForkRecord } from '@snowflock/protocol';
import { z } from 'zod';
import { eventually, patient, timed } from './support/deadline.ts';
import type { Guest } from './support/guest.ts';
import { MemoryTest } from './support/memtest.ts';
import { requireVm } from './require-vm.ts';
import { MICRO, sharedLab } from './support/test-lab.ts';

const RUN = requireVm();
/** From the death of a VM's process to its report in sfstate. */
const NOTICED_MS = 5_000;
/** A memtap tries for 10 s to find its source again. */
const SOURCE_LOST_MS = 20_000;
const MERGE_MS = 15_000;
const AREA_MIB = 40;

describe.skipIf(!RUN)('a process that dies', () => {
  const lab = sharedLab({ hosts: 2, cpus: 6, ramMib: 2048 });

  /** A master VM with four clones that fault, two on each host. */
  async function forked(): Promise<{
    master: Guest;
    memory: MemoryTest;
    ticket: string;
    clones: Guest[];
    on: (k: number) => Guest[];
  }> {
    const master = await lab().seed({ ...MICRO, memoryMib: 128 });
    const memory = await MemoryTest.start(lab(), master, { areaMib: AREA_MIB });
    const { ticket, clones } = await memory.fork(4);
    const placed = await lab().clonesOf(master, ticket);
    const on = (k: number): Guest[] =>
      clones.filter(({ vmid }) => placed.some((each) => each.vmid === vmid && each.host === `host${k}`));
    expect([on(1).length, on(2).length]).toEqual([2, 2]);
    return { master, memory, ticket, clones, on };
  }

  /** All of a ticket is merged in time; then only the master VM is left, it works, and it forks again. */
  async function expectRecovery(master: Guest, memory: MemoryTest, ticket: string): Promise<void> {
    const { ms } = await timed(() => memory.merge(ticket));
    expect(ms).toBeLessThan(patient(MERGE_MS));
    const { hosts, clusters } = await lab().state();
    expect(clusters.find(({ clusterid }) => clusterid === master.clusterid)?.vms.length).toBe(1);
    expect(hosts.map(({ vms }) => vms).sort()).toEqual([0, 1]);
    const again = await memory.fork(2);
    for (const clone of again.clones) await memory.expectRight(clone);
    await memory.merge(again.ticket);
  }

  it('a clone, by SIGKILL while it faults: it alone is lost', async () => {
    const { master, memory, ticket, clones, on } = await forked();
    const [victim] = on(2);
    if (!victim) throw new Error('no clone on host 2');
    await lab().killOne(2, `-name sf-${victim.name} `);
    expect(await lab().endOf(victim, 'lost', NOTICED_MS)).toMatch(/was ended by SIGKILL/);
    expect((await victim.exec(['true']).catch(String)) as string).toMatch(/is lost: .*SIGKILL/);
    for (const clone of clones) if (clone !== victim) await memory.expectRight(clone);
    await expectRecovery(master, memory, ticket);
  });

  it('the memserver: its clones are lost, and the frozen copy goes', async () => {
    const { master, memory, ticket, clones } = await forked();
    const home = await lab().hostOf(master);
    const forks = await lab().get('/v1/forks', z.array(ForkRecord), home);
    const pid = forks.find((fork) => fork.ticket === ticket)?.memserverPid;
    expect(await lab().killOne(home, 'memserver/main.ts')).toBe(pid);
    for (const clone of clones)
      expect(await lab().endOf(clone, 'lost', SOURCE_LOST_MS)).toMatch(
        /^the parent's memory can no longer be fetched: /,
      );
    await eventually(NOTICED_MS, 'the frozen process to end', async () => {
      expect(await lab().pids(home, 'sf-frozen')).toEqual([]);
    });
    await expectRecovery(master, memory, ticket);
  });

  it('the frozen process: the same', async () => {
    const { master, memory, ticket, clones } = await forked();
    await lab().killOne(await lab().hostOf(master), 'sf-frozen');
    for (const clone of clones)
      expect(await lab().endOf(clone, 'lost', SOURCE_LOST_MS)).toMatch(
        /^the parent's memory can no longer be fetched: /,
      );
    await expectRecovery(master, memory, ticket);
  });

  it('a memtap: the clones of its host are lost, those of the other go on', async () => {
    const { master, memory, ticket, on } = await forked();
    await lab().killOne(2, 'memtap/main.ts');
    for (const clone of on(2))
      expect(await lab().endOf(clone, 'lost', NOTICED_MS)).toMatch(
        /^the parent's memory can no longer be fetched: its memtap ended|SIGBUS/,
      );
    for (const clone of on(1)) await memory.expectRight(clone);
    await expectRecovery(master, memory, ticket);
  });

  it('the master VM, with clones outstanding: its cluster ends everywhere', async () => {
    const { master, clones } = await forked();
    const stranger = await lab().seed();
    // Its frozen copy has the same command line, but another name.
    await lab().killOne(await lab().hostOf(master), 'qemu-system-x86 ', `-name sf-${master.clusterid}:0 `);
    await eventually(MERGE_MS, 'the cluster to be gone', async () => {
      expect((await lab().state()).clusters.map(({ clusterid }) => clusterid)).toEqual([stranger.clusterid]);
    });
    for (const vm of [master, ...clones])
      expect((await vm.exec(['true']).catch(String)) as string).toMatch(/there is no (VM|cluster)/);
    expect(await stranger.run(['hostname'])).toBe(`sf-${stranger.clusterid}-0`);
    await lab().shutdown(stranger.clusterid, false);
    await lab().expectIdle();
  });
});
