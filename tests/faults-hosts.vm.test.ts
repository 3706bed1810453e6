// Hosts that are cut off, and an sfmd that hangs or is killed (sfld: sfld-restart*.vm.test.ts): clones there are lost with a
// reason, all others go on, nothing waits for what does not answer, and when it is back all is free.

import { setTimeout as sleep } from 'node:timers/promises';
import { describe, expect, it } from 'vitest';
import { eventually, patient, timed, within } from './support/deadline.ts';
import type { Guest } from './support/guest.ts';
import { MemoryTest } from './support/memtest.ts';
import { requireVm } from './require-vm.ts';
import { MICRO, sharedLab, TestLab } from './support/test-lab.ts';

const RUN = requireVm();
const LAB = { hosts: 2, cpus: 6, ramMib: 2048, hostTimeoutSeconds: 8 };
/** From a host's silence to its loss. */
const DOWN_MS = 15_000;
/** A fork of which one host does not answer: until sfmd counts it as down. */
const FORK_MS = 20_000;
/** A memtap looks for its source for 10 s. */
const SOURCE_LOST_MS = 20_000;
const CALL_MS = 15_000;
const AREA_MIB = 40;

describe.skipIf(!RUN)('a host or a daemon that is gone', () => {
  const lab = sharedLab(LAB);

  /** A master VM on host 1, so that host 2 only has clones. */
  async function seed(): Promise<Guest> {
    const master = await lab().seed({ ...MICRO, memoryMib: 128 }, { on: 1 });
    // The connections between the hosts are open and used, as they are in a system that has run for a while.
    await master.sh("sfclone 2 && sfmerge ''");
    return master;
  }

  const upOf = async (k: number): Promise<boolean | undefined> => (await lab().state()).hosts[k - 1]?.up;

  /** Those of the clones on host 2, and those on host 1. */
  async function byHost(master: Guest, ticket: string): Promise<{ near: Guest[]; far: Guest[] }> {
    const clones = await lab().clonesOf(master, ticket);
    const on = (host: string): Guest[] =>
      clones.filter((each) => each.host === host).map(({ vmid }) => master.sibling(vmid));
    return { near: on('host1'), far: on('host2') };
  }

  async function merged(master: Guest, ticket: string): Promise<void> {
    const { ms } = await timed(() => master.run(['sfmerge', ticket]));
    expect(ms).toBeLessThan(patient(CALL_MS));
  }

  it('cut off between ticket and fork: the fork has the clones of the others', async () => {
    const master = await seed();
    const printed = await master.run(['sfdotix', '4']);
    const ticket = /^Ticket is (\S+)$/m.exec(printed)?.[1] ?? '';
    await lab().prepared(master, ticket);
    await lab().lab.cutHost(2);
    const { ms, value } = await timed(() => master.run(['sfdoclone', ticket], { deadlineMs: 60_000 }));
    expect(value).toBe('I am the master with 2 clones (original VM).');
    expect(ms).toBeLessThan(patient(FORK_MS));
    const { near, far } = await byHost(master, ticket);
    for (const clone of near)
      expect(await clone.run(['hostname'])).toBe(`sf-${clone.clusterid}-${clone.vmid}`);
    for (const clone of far) expect(await lab().endOf(clone, 'lost', DOWN_MS)).toMatch(/host2/);
    await merged(master, ticket);
    await lab().lab.healHost(2);
  });

  it('cut off while it forks: the same', async () => {
    const master = await seed();
    const printed = await master.run(['sfdotix', '4']);
    const ticket = /^Ticket is (\S+)$/m.exec(printed)?.[1] ?? '';
    await lab().prepared(master, ticket);
    await using fork = await master.start(['sfdoclone', ticket]);
    const begin = performance.now();
    await sleep(80);
    await lab().lab.cutHost(2);
    // As it happens: host 2 had the descriptor in time, or not, or all of it and could not say so.
    expect(await fork.line(60_000)).toMatch(/^I am the master with [24] clones \(original VM\)\.$/);
    expect(performance.now() - begin).toBeLessThan(patient(FORK_MS));
    const { near, far } = await byHost(master, ticket);
    for (const clone of near)
      expect(await clone.run(['hostname'])).toBe(`sf-${clone.clusterid}-${clone.vmid}`);
    for (const clone of far) expect(await lab().endOf(clone, 'lost', DOWN_MS)).toMatch(/host2/);
    await merged(master, ticket);
    await lab().lab.healHost(2);
  });

  it('cut off for a moment while clones run: nobody is lost', async () => {
    const master = await seed();
    await using memory = await MemoryTest.start(lab(), master, { areaMib: AREA_MIB });
    const { ticket, clones } = await memory.fork(4);
    await lab().lab.cutHost(2);
    await sleep(3000);
    await lab().lab.healHost(2);
    for (const clone of clones) await memory.expectRight(clone);
    expect(await upOf(2)).toBe(true);
    await memory.merge(ticket);
  });

  it('cut off for good while clones run: its clones are lost, on both sides', async () => {
    const master = await seed();
    await using memory = await MemoryTest.start(lab(), master, { areaMib: AREA_MIB });
    const { ticket } = await memory.fork(4);
    const { near, far } = await byHost(master, ticket);
    await lab().lab.cutHost(2);
    for (const clone of near) await memory.expectRight(clone);
    for (const clone of far)
      expect(await lab().endOf(clone, 'lost', DOWN_MS)).toMatch(/^host host2 stopped answering /);
    expect(await upOf(2)).toBe(false);
    for (const clone of far)
      expect(await clone.exec(['true']).catch(String)).toMatch(/is lost: host host2 stopped answering/);
    // Over there the clones end, because what they need cannot be fetched.
    await eventually(SOURCE_LOST_MS, 'the clones on host 2 to end', async () => {
      expect(await lab().pids(2, 'qemu-system-x86_64')).toEqual([]);
    });
    await memory.merge(ticket);
    // Host 2 is not free before it has answered; what fits on host 1 can be had at once.
    const more = await memory.fork(2);
    expect((await byHost(master, more.ticket)).far).toEqual([]);
    await lab().lab.healHost(2);
    await eventually(DOWN_MS, 'host 2 to be up and free', async () => {
      expect((await lab().state()).hosts[1]).toMatchObject({ up: true, cpusFree: LAB.cpus, vms: 0 });
    });
    await memory.merge(more.ticket);
  });

  it('an sfmd that hangs: guests are told so in time, and it grants nothing to those who have left', async () => {
    const master = await seed();
    const { ticket } = await lab().fork(master, 1);
    lab().lab.signalDaemon(1, 'sfmd', 'SIGSTOP');
    try {
      const { ms, value } = await timed(() => master.exec(['sfdotix', '1']));
      expect(value).toMatchObject({ status: 1, err: expect.stringMatching(/^sfdotix: timeout: /) as string });
      expect(ms).toBeLessThan(patient(CALL_MS));
    } finally {
      lab().lab.signalDaemon(1, 'sfmd', 'SIGCONT');
    }
    await lab().hostsUp();
    await merged(master, ticket);
    await eventually(CALL_MS, 'no ticket to be held', async () => {
      expect((await lab().state()).clusters[0]?.tickets).toEqual([]);
    });
  });
});

describe.skipIf(!RUN)('a killed sfmd', () => {
  it('has forgotten nothing; who asked it meanwhile is answered when it is back; running VMs do not notice', async () => {
    await using stack = new AsyncDisposableStack();
    const lab = await TestLab.up(LAB);
    stack.defer(() => lab.down());
    const master = await lab.seed();
    const { clones, ticket } = await lab.fork(master, 2);
    const before = await lab.state();
    const sflds = [1, 2].map((k) => lab.lab.daemonPid(k, 'sfld'));
    await lab.killDaemon(1, 'sfmd');
    const asked = master.exec(['sfdotix', '1']);
    expect(await master.run(['hostname'])).toBe(`sf-${master.clusterid}-0`);
    await lab.lab.startDaemon(1, 'sfmd');
    expect(await within(CALL_MS, 'an answer by the next sfmd', asked)).toMatchObject({ status: 0, err: '' });
    await lab.hostsUp();
    const after = await lab.state();
    expect(after.clusters[0]?.vms.filter((vm) => vm.ticket === ticket)).toEqual(
      before.clusters[0]?.vms.filter((vm) => vm.ticket === ticket),
    );
    expect([1, 2].map((k) => lab.lab.daemonPid(k, 'sfld'))).toEqual(sflds);
    for (const clone of clones) expect(await clone.run(['hostname'])).not.toBe('');
    await lab.killDaemon(1, 'sfmd');
    await lab.lab.startDaemon(1, 'sfmd');
    await lab.hostsUp();
    expect((await master.exec(['sfmerge', ''])).status).toBe(0);
    await eventually(CALL_MS, 'the tickets to be gone', async () => {
      expect((await lab.state()).clusters[0]?.tickets).toEqual([]);
    });
    expect(await lab.fork(master, 1)).toBeTruthy();
  });
});
