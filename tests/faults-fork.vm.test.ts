// What goes wrong around the instant of a fork: parts that die while they wait for it, and others who ask for something else
// at the same time.

import { setTimeout as sleep } from 'node:timers/promises';
import { beforeAll, describe, expect, it } from 'vitest';
import { eventually, patient, timed, within } from './support/deadline.ts';
import { compileForGuest } from './support/guest-programs.ts';
import type { Guest } from './support/guest.ts';
import { requireVm } from './require-vm.ts';
import { sharedLab } from './support/test-lab.ts';

const RUN = requireVm();
const CALL_MS = 20_000;

describe.skipIf(!RUN)('around a fork', () => {
  const lab = sharedLab({ hosts: 2, cpus: 6, ramMib: 2048 });
  let vmtest: Buffer;
  beforeAll(async () => {
    vmtest = await compileForGuest('vmtest');
  });

  async function seed(): Promise<Guest> {
    const master = await lab().seed();
    await master.put('/tmp/vmtest', vmtest);
    return master;
  }

  /** A ticket whose clones wait for their fork. */
  async function ticketOf(master: Guest, count: number): Promise<string> {
    const ticket = /^Ticket is (\S+)$/m.exec(await master.run(['sfdotix', String(count)]))?.[1] ?? '';
    await lab().prepared(master, ticket);
    return ticket;
  }

  /** The master VM works, and forks. */
  async function expectWell(master: Guest): Promise<void> {
    const { ticket, clones } = await lab().fork(master, 2);
    for (const clone of clones)
      expect(await clone.run(['hostname'])).toBe(`sf-${clone.clusterid}-${clone.vmid}`);
    await master.run(['sfmerge', ticket]);
  }

  it('a clone that dies while it waits is missing, and no more', async () => {
    const master = await seed();
    const ticket = await ticketOf(master, 4);
    await lab().killOne(await lab().hostOf(master.sibling(2)), `-name sf-${master.clusterid}:2 `);
    expect(await master.run(['sfdoclone', ticket])).toBe('I am the master with 3 clones (original VM).');
    expect(await lab().endOf(master.sibling(2), 'lost', CALL_MS)).toMatch(/SIGKILL/);
    for (const vmid of [1, 3, 4]) expect(await master.sibling(vmid).run(['hostname'])).toMatch(`-${vmid}`);
    await master.run(['sfmerge', ticket]);
    await expectWell(master);
  });

  it.each([
    ['memserver', 'memserver/main.ts'],
    ['memtap', 'memtap/main.ts'],
  ])('a %s that dies while it waits fails its clones, in time and with its reason', async (what, program) => {
    const master = await seed();
    const ticket = await ticketOf(master, 2);
    for (const k of what === 'memtap' ? [1, 2] : [await lab().hostOf(master)])
      await lab().killOne(k, program);
    const { ms, value } = await timed(() => master.exec(['sfdoclone', ticket]));
    expect(value).toMatchObject({
      status: 1,
      err: expect.stringMatching(/^sfdoclone: fork-failed: no clone .* could be started: /) as string,
    });
    expect(value.err).toMatch(new RegExp(what));
    expect(ms).toBeLessThan(patient(CALL_MS));
    expect((await lab().state()).clusters[0]?.tickets).toEqual([]);
    await expectWell(master);
  });

  it('two programs that fork at the same time both get their clones', async () => {
    const master = await seed();
    const [one, two] = [await ticketOf(master, 1), await ticketOf(master, 1)];
    const both = [one, two].map((ticket) => master.exec(['sfdoclone', ticket]));
    for (const outcome of await within(CALL_MS, 'both forks', Promise.all(both)))
      expect(outcome).toMatchObject({ status: 0, out: 'I am the master with 1 clones (original VM).\n' });
    for (const vmid of [1, 2]) expect(await master.sibling(vmid).run(['hostname'])).toMatch(`-${vmid}`);
    expect(await master.run(['sfmerge', ''])).toMatch(/all tickets/);
  });

  it('a merge of everything in the middle of a fork leaves nothing of it', async () => {
    const master = await seed();
    for (const delayMs of [0, 60, 150]) {
      const ticket = await ticketOf(master, 2);
      const fork = master.exec(['sfdoclone', ticket]);
      await sleep(delayMs);
      const merge = master.exec(['sfmerge', '']);
      const [forked, merged] = await within(CALL_MS, 'fork and merge', Promise.all([fork, merge]));
      expect(merged).toMatchObject({ status: 0 });
      expect(forked.status === 0 || /^sfdoclone: [a-z-]+: /.test(forked.err), forked.err).toBe(true);
      await eventually(CALL_MS, 'only the master VM', async () => {
        const [cluster] = (await lab().state()).clusters;
        expect(cluster?.tickets).toEqual([]);
        expect(cluster?.vms.length).toBe(1);
      });
    }
    await expectWell(master);
  });

  it('a forced shutdown in the middle of a fork leaves nothing', async () => {
    const master = await seed();
    const ticket = await ticketOf(master, 3);
    const fork = master.exec(['sfdoclone', ticket]).catch(String);
    await sleep(100);
    await lab().shutdown(master.clusterid);
    await within(CALL_MS, 'the end of the caller', fork);
    await lab().expectIdle();
  });

  it('a join waits for those that compute, not for those that are lost', async () => {
    const master = await seed();
    const { ticket, clones } = await lab().fork(master, 2);
    const [first, second] = clones;
    if (!first || !second) throw new Error('no clones');
    await using join = await master.start(['/tmp/vmtest', 'call', 'ic_join', ticket]);
    await first.start(['/tmp/vmtest', 'call', 'ic_exit']);
    await lab().endOf(first, 'exited', CALL_MS);
    await expect(join.line(1000)).rejects.toThrow(/not within/);
    await lab().killOne(await lab().hostOf(second), `-name sf-${second.name} `);
    expect(await join.line(CALL_MS)).toBe('ok');
    expect((await lab().state()).clusters[0]?.vms.length).toBe(1);
  });

  it('VMs that power themselves off have exited: a clone alone, a master VM with its cluster', async () => {
    const master = await seed();
    const { ticket, clones } = await lab().fork(master, 2);
    const [first, second] = clones;
    if (!first || !second) throw new Error('no clones');
    await first.start(['poweroff']);
    expect(await lab().endOf(first, 'exited', CALL_MS)).toMatch(/powered off/);
    expect(await second.run(['hostname'])).toMatch(`-${second.vmid}`);
    await master.run(['sfmerge', ticket]);
    await lab().fork(master, 1);
    await master.start(['poweroff']);
    await eventually(CALL_MS, 'the cluster to be gone', async () => {
      expect((await lab().state()).clusters).toEqual([]);
    });
    await lab().expectIdle();
  });
});
