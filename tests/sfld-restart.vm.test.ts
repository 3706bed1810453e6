// sfld killed at any moment and started again: what runs does not notice, and nothing is lost or left behind.

import { setTimeout as sleep } from 'node:timers/promises';
import { describe, expect, it } from 'vitest';
import { eventually, patient, timed } from './support/deadline.ts';
import type { Guest } from './support/guest.ts';
import { MemoryTest } from './support/memtest.ts';
import { requireVm } from './require-vm.ts';
import { MICRO, sharedLab } from './support/test-lab.ts';

const RUN = requireVm();
/** From the start of sfld to the guests' being reachable. */
const BACK_MS = 15_000;
const AREA_MIB = 40;

describe.skipIf(!RUN)('sfld killed and started again', () => {
  const lab = sharedLab({ hosts: 2, cpus: 6, ramMib: 2048 });

  const seed = (): Promise<Guest> => lab().seed({ ...MICRO, memoryMib: 128 }, { on: 1 });

  async function restart(k: number, { downMs = 0 }: { downMs?: number } = {}): Promise<void> {
    await lab().killDaemon(k, 'sfld');
    await sleep(downMs);
    await lab().lab.startDaemon(k, 'sfld');
  }

  /** Something that counts in the VM, and says when it was not running for longer than usual. */
  async function startCounting(guest: Guest): Promise<() => Promise<number>> {
    await guest.sh(
      "(setsid sh -c 'i=0; while :; do i=$((i+1)); echo $i >/run/count; sleep 0.1; done' >/dev/null 2>&1 &)",
    );
    return async () => Number(await guest.run(['cat', '/run/count']));
  }

  async function vmids(master: Guest): Promise<string[]> {
    const cluster = (await lab().state()).clusters.find(({ clusterid }) => clusterid === master.clusterid);
    return (cluster?.vms ?? []).map(({ vmid, status }) => `${vmid} ${status}`).sort();
  }

  /** Who may send VXLAN to each host: the other one, in a lab of two. */
  async function vxlanFilters(): Promise<string[]> {
    const table = ['nft', 'list', 'set', 'ip', 'snowflock_vxlan', 'hosts'];
    const lists = await Promise.all([1, 2].map((k) => lab().lab.exec(k, table)));
    const found = lists.map(({ stdout }) => /elements = \{ ([^}]*) \}/.exec(stdout)?.[1] ?? stdout);
    expect(found).toEqual(
      lab()
        .lab.hosts.map(({ address }) => address)
        .reverse(),
    );
    return found;
  }

  /** Until every VM of the host answers again. */
  async function back(...guests: Guest[]): Promise<void> {
    for (const guest of guests)
      await eventually(BACK_MS, `VM ${guest.name} to answer`, async () => {
        expect(await guest.run(['hostname'], { deadlineMs: BACK_MS })).toBe(
          `sf-${guest.clusterid}-${guest.vmid}`,
        );
      });
  }

  it.each([
    ['of the master VM and half of its clones', [1]],
    ['of the other half', [2]],
    ['of both, twice', [1, 2, 1, 2]],
  ])('on the host %s: all compute on, and merge, and fork again', async (_what, hosts) => {
    const master = await seed();
    await using memory = await MemoryTest.start(lab(), master, { areaMib: AREA_MIB, detached: true });
    const count = await startCounting(master);
    const { ticket, clones } = await memory.fork(4);
    const before = await count();
    const filters = await vxlanFilters();
    for (const k of hosts) await restart(k);
    const { ms } = await timed(() => back(master, ...clones));
    expect(ms).toBeLessThan(patient(BACK_MS));
    expect(await count()).toBeGreaterThan(before);
    expect(await vmids(master)).toEqual(['0 running', '1 running', '2 running', '3 running', '4 running']);
    for (const clone of clones) await memory.expectRight(clone);
    // Their network too.
    const [first, second] = clones;
    if (!first || !second) throw new Error('no clones');
    await first.run(['ping', '-c', '1', '-W', '5', second.ip]);
    await first.run(['ping', '-c', '1', '-W', '5', master.ip]);
    expect(await vxlanFilters()).toEqual(filters);
    await memory.merge(ticket);
    expect(await vmids(master)).toEqual(['0 running']);
    const again = await memory.fork(2);
    for (const clone of again.clones) await memory.expectRight(clone);
    await memory.merge(again.ticket);
  });

  it('between a ticket and its fork: the fork works', async () => {
    const master = await seed();
    const ticket = /^Ticket is (\S+)$/m.exec(await master.run(['sfdotix', '4']))?.[1] ?? '';
    await lab().prepared(master, ticket);
    for (const k of [1, 2]) await restart(k);
    await back(master);
    expect(await master.run(['sfdoclone', ticket])).toBe('I am the master with 4 clones (original VM).');
    await back(...[1, 2, 3, 4].map((vmid) => master.sibling(vmid)));
    await master.run(['sfmerge', ticket]);
  });

  it('together with sfmd: nobody is lost, and all goes on', async () => {
    const master = await seed();
    await using memory = await MemoryTest.start(lab(), master, { areaMib: AREA_MIB, detached: true });
    const { ticket, clones } = await memory.fork(4);
    await lab().killDaemon(1, 'sfmd');
    for (const k of [1, 2]) await lab().killDaemon(k, 'sfld');
    for (const k of [1, 2]) await lab().lab.startDaemon(k, 'sfld');
    await lab().lab.startDaemon(1, 'sfmd');
    await lab().hostsUp();
    await back(master, ...clones);
    expect(await vmids(master)).toEqual(['0 running', '1 running', '2 running', '3 running', '4 running']);
    for (const clone of clones) await memory.expectRight(clone);
    await memory.merge(ticket);
    const again = await memory.fork(2);
    for (const clone of again.clones) await memory.expectRight(clone);
    await memory.merge(again.ticket);
  });
});
