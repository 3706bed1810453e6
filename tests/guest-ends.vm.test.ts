// Guests that end from inside, by themselves or by a crash, whatever they are in the middle of.

import { beforeAll, describe, expect, it } from 'vitest';
import { eventually } from './support/deadline.ts';
import { compileForGuest } from './support/guest-programs.ts';
import type { Guest } from './support/guest.ts';
import { requireVm } from './require-vm.ts';
import { sharedLab } from './support/test-lab.ts';

const RUN = requireVm();
const GONE_MS = 45_000;
const WAYS = {
  reboots: 'reboot -f',
  'is powered off': 'poweroff -f',
  crashes: 'echo c > /proc/sysrq-trigger',
} as const;
/** What a join and `sfstate` say of clones that end in these ways. */
const TOLD = {
  reboots: { status: 'exited', reason: expect.stringMatching(/ rebooted, which ends it$/) as string },
  'is powered off': { status: 'exited', reason: expect.stringMatching(/ powered off$/) as string },
  crashes: {
    status: 'lost',
    reason: expect.stringMatching(/ crashed: its console says: Kernel panic - not syncing: sysrq/) as string,
  },
} as const;

describe.skipIf(!RUN)('a guest that ends from inside', () => {
  const lab = sharedLab({ hosts: 2, cpus: 4, ramMib: 2048 });
  let vmtest: Buffer;
  beforeAll(async () => {
    vmtest = await compileForGuest('vmtest');
  });

  async function seed(): Promise<Guest> {
    const master = await lab().seed();
    await master.put('/tmp/vmtest', vmtest);
    return master;
  }

  /** Half a second later, when the command that says so has ended. */
  const end = (guest: Guest, how: string): Promise<string> =>
    guest.sh(`{ sleep 0.5; ${how}; } >/dev/null 2>&1 </dev/null &`);

  async function expectGone(): Promise<void> {
    await eventually(GONE_MS, 'the cluster to be gone', async () => {
      expect((await lab().state()).clusters).toEqual([]);
    });
    await lab().expectIdle();
  }

  it.each(Object.entries(WAYS))(
    'as a master VM that waits for nothing and %s, ends its cluster',
    async (_, how) => {
      const master = await seed();
      await end(master, how);
      await expectGone();
    },
  );

  it.each(Object.entries(WAYS))(
    'as a master VM with clones and an unused ticket, in a blocking join, and %s, takes them along',
    async (_, how) => {
      const master = await seed();
      const { ticket } = await lab().fork(master, 2);
      await master.run(['sfdotix', '1']);
      await using join = await master.start(['/tmp/vmtest', 'call', 'ic_join', ticket]);
      await end(master, how);
      await expectGone();
      await expect(join.exited).rejects.toThrow();
    },
  );

  it('as clones, each in another way, is no clone any more: a join that waits for them returns', async () => {
    const master = await seed();
    const { ticket, clones } = await lab().fork(master, 4);
    await using join = await master.start(['/tmp/vmtest', 'call', 'ic_join', ticket]);
    for (const [i, how] of Object.values(WAYS).entries()) await end(clones[i]!, how);
    for (const [i, told] of Object.values(TOLD).entries())
      await eventually(GONE_MS, `the end of clone ${i + 1}`, async () => {
        expect(await lab().vm(clones[i]!)).toMatchObject(told);
      });
    await expect(join.line(500)).rejects.toThrow(/not within/); // the fourth runs
    await clones[3]!.start(['/tmp/vmtest', 'call', 'ic_exit']);
    expect(await join.line()).toMatch(/^ok/);
    expect(await master.run(['/tmp/vmtest', 'call', 'list_tickets'])).toBe('ok unused outstanding');
    expect((await lab().fork(master, 1)).clones.length).toBe(1);
  });

  it('as one of two clusters that share the hosts, leaves the other alone', async () => {
    const [first, second] = [await seed(), await seed()];
    const ours = await lab().fork(first, 1);
    const theirs = await lab().fork(second, 2);
    await end(second, WAYS.crashes);
    await eventually(GONE_MS, 'the second cluster to be gone', async () => {
      expect((await lab().state()).clusters.map(({ clusterid }) => clusterid)).toEqual([first.clusterid]);
    });
    for (const vm of [first, ...ours.clones])
      expect(await vm.run(['hostname'])).toBe(`sf-${vm.clusterid}-${vm.vmid}`);
    expect(theirs.clones.length).toBe(2);
    expect((await lab().fork(first, 2)).clones.length).toBe(2);
  });

  it('has many threads and processes that call at once before: each gets its own answer', async () => {
    const master = await seed();
    const tickets = await Promise.all(
      ['1', '1', '1'].map(async (count) => {
        const line = await master.run(['/tmp/vmtest', 'call', 'request_clone_ticket', count, '0', '1', '1']);
        return /^ok 1 (\S+)$/.exec(line)?.[1] ?? '';
      }),
    );
    // Three forks asked for at once go one after the other; calls of others are answered meanwhile, each with its own words.
    const script =
      `for t in ${tickets.join(' ')}; do sfdoclone $t > /run/said.$t 2>&1 & done; i=0; ` +
      `while [ $i -lt 15 ]; do for t in ${tickets.join(' ')}; do /tmp/vmtest call read_ticket_info $t > /run/info.$t.$i & done; i=$((i+1)); done; wait`;
    await master.sh(script);
    for (const ticket of tickets) {
      expect(await master.file(`/run/said.${ticket}`)).toBe('I am the master with 1 clones (original VM).');
      const infos = (await master.sh(`cat /run/info.${ticket}.*`)).split('\n');
      expect(infos.length).toBe(15);
      for (const info of infos) expect(info).toMatch(new RegExp(`^ok ${ticket} \\d:1$`));
    }
    expect(tickets.length).toBe(new Set(tickets).size);
    const words = (await master.run(['/tmp/vmtest', 'call', 'list_tickets'])).split(' ');
    expect(words.slice(words.indexOf('outstanding') + 1).sort()).toEqual([...tickets].sort());
    for (const vmid of [1, 2, 3])
      expect(await master.sibling(vmid).run(['hostname'])).toBe(`sf-${master.clusterid}-${vmid}`);
  });
});
