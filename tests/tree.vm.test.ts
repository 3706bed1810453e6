// Clones that fork: a tree of VMs over hosts. Memory, disk, identity and network are right at every depth; a VM may use its own tickets
// only; what ends takes along all that is below it, and in the end nothing is left.

import { setTimeout as sleep } from 'node:timers/promises';
import { beforeAll, describe, expect, it } from 'vitest';
import { HostState } from '@snowflock/protocol';
import { eventually } from './support/deadline.ts';
import { compileForGuest } from './support/guest-programs.ts';
import type { Guest } from './support/guest.ts';
import { MemoryTest } from './support/memtest.ts';
import { requireVm } from './require-vm.ts';
import { MICRO, sharedLab } from './support/test-lab.ts';

const RUN = requireVm();
const END_MS = 30_000;
const AREA_MIB = 24;
/** From before the call to after the fork. */
const KILL_AFTER_MS = [300, 450, 650];

describe.skipIf(!RUN)('a tree of VMs', () => {
  const lab = sharedLab({ hosts: 3, cpus: 8, ramMib: 2048 });
  let vmtest: Buffer;
  beforeAll(async () => {
    vmtest = await compileForGuest('vmtest');
  });

  async function seed(): Promise<Guest> {
    const master = await lab().seed();
    await master.put('/tmp/vmtest', vmtest);
    return master;
  }

  const call = (guest: Guest, line: string): Promise<string> =>
    guest.run(['/tmp/vmtest', 'call', ...line.split(' ')]);

  async function fork(guest: Guest, count: number): Promise<{ ticket: string; clones: Guest[] }> {
    const { ticket, clones } = await lab().fork(guest, count);
    expect(clones).toHaveLength(count);
    return { ticket, clones };
  }

  async function forkOne(guest: Guest): Promise<{ ticket: string; clone: Guest }> {
    const { ticket, clones } = await fork(guest, 1);
    const [clone] = clones;
    if (!clone) throw new Error('no clone');
    return { ticket, clone };
  }

  /** Only these VMs of the cluster are left, on any host. */
  async function expectOnly(vms: readonly Guest[]): Promise<void> {
    const [{ clusterid }] = vms as [Guest];
    const wanted = vms.map(({ name }) => name).sort();
    await eventually(END_MS, `only VMs ${wanted.join(' ')} to be left`, async () => {
      const { hosts } = lab().lab;
      const states = await Promise.all(hosts.map(({ k }) => lab().get('/v1/state', HostState, k)));
      const named = (name: string): boolean => name.startsWith(`${clusterid}:`);
      expect(states.flatMap(({ masters, clones }) => [...masters, ...clones].filter(named)).sort()).toEqual(
        wanted,
      );
      const frozen = await Promise.all(hosts.map(({ k }) => lab().pids(k, 'sf-frozen')));
      const cluster = (await lab().state()).clusters.find((each) => each.clusterid === clusterid);
      expect(frozen.flat()).toHaveLength(cluster?.tickets.length ?? 0);
    });
  }

  it('has no wrong byte anywhere, while all of them write', async () => {
    const master = await lab().seed({ ...MICRO, memoryMib: 112 });
    await using memory = await MemoryTest.start(lab(), master, { areaMib: AREA_MIB, writer: true });
    const { ticket: narrow, clones: line } = await memory.tree(1, 3);
    expect(line).toHaveLength(3);
    await memory.merge(narrow);
    const { ticket, clones } = await memory.tree(2, 2);
    expect(clones).toHaveLength(2 + 4);
    const { vms, tickets } = (await lab().state()).clusters[0] ?? { vms: [], tickets: [] };
    const hostOf = (vmid: number): string => vms.find((vm) => vm.vmid === vmid)?.host ?? '';
    const far = tickets.filter(({ owner, clones: of }) => of.some(({ host }) => host !== hostOf(owner)));
    expect(far.filter(({ owner }) => owner !== 0).length).toBeGreaterThan(0);
    await memory.merge(ticket);
    await expectOnly([master]);
  });

  it('has a disk, a name and an address of its own in each, and one network', async () => {
    const master = await seed();
    await master.sh('echo 0 > /disk/0; sync');
    const vms = [master];
    for (let depth = 1; depth <= 3; depth++) {
      const parent = vms.at(-1) ?? master;
      const { clone } = await forkOne(parent);
      await parent.sh(`echo later > /disk/${parent.vmid}; sync`);
      await clone.sh(`echo ${depth} > /disk/${clone.vmid}; sync; echo 3 > /proc/sys/vm/drop_caches`);
      vms.push(clone);
    }
    for (const [depth, vm] of vms.entries()) {
      const files = vms.slice(0, depth + 1).map(({ vmid }) => `/disk/${vmid}`);
      // Of those above it as of its fork; of itself as it went on, unless it is the last, which had no fork.
      const own = depth === vms.length - 1 ? String(depth) : 'later';
      const above = vms.slice(0, depth).map((_, index) => String(index));
      expect(await vm.sh(`cat ${files.join(' ')}`), vm.name).toBe([...above, own].join('\n'));
      expect((await vm.sh('ls /disk')).split(/\s+/).filter((name) => /^\d+$/.test(name))).toHaveLength(
        depth + 1,
      );
      expect(await vm.run(['hostname'])).toBe(`sf-${vm.clusterid}-${vm.vmid}`);
      expect(await call(vm, 'whoami')).toBe(`ok ${vm.clusterid} ${vm.vmid}`);
      for (const other of vms) await vm.run(['ping', '-c', '1', '-W', '5', other.ip]);
    }
    await call(master, 'merge_master *');
    await expectOnly([master]);
  });

  it('tells parent and clones apart by their vmids, and lets each use its own tickets only', async () => {
    const master = await seed();
    const { ticket: first, clone } = await forkOne(master);
    const { ticket, clones } = await fork(clone, 2);
    expect(await clone.file('/run/sfclone.out')).toContain(`I am clone ${clone.vmid} with 2 clones`);
    const [left, right] = clones as [Guest, Guest];
    expect(await left.file('/run/sfclone.out')).toContain(`I am clone ${left.vmid} (cloned VM)`);
    expect(await call(clone, 'list_tickets')).toBe(`ok unused outstanding ${ticket}`);
    expect(await call(master, 'list_tickets')).toBe(`ok unused outstanding ${first}`);
    expect(await call(left, 'list_tickets')).toBe('ok unused outstanding');
    const unused = /^ok 1 (\S+)$/.exec(await call(left, 'request_clone_ticket 1 0 1 0'))?.[1] ?? '';
    const refused = /^err not-owner ticket \S+ is one of VM \d+:\d+; VM \d+:\d+ may only use its own$/;
    for (const vm of [master, left, right])
      for (const verb of ['ic_join', 'ic_kill', 'merge_master', 'clone_master'])
        expect(await call(vm, `${verb} ${ticket}`), `${verb} by ${vm.name}`).toMatch(refused);
    for (const verb of ['dispose_ticket', 'clone_master', 'read_ticket_info'])
      expect(await call(clone, `${verb} ${unused}`)).toMatch(refused);
    // The clones of a ticket may look at it, as ever.
    expect(await call(left, `read_ticket_info ${ticket}`)).toMatch(/^ok \S+( \d+:1){2}$/);
    expect(await call(clone, 'shutdown_cluster')).toMatch(/^err not-master /);
    expect(await call(left, `dispose_ticket ${unused}`)).toBe('ok');
    // It waits for its own clones, and they for nobody.
    const joined = call(clone, `ic_join ${ticket}`);
    for (const vm of clones) await vm.exec(['/tmp/vmtest', 'call', 'ic_exit']).catch(() => undefined);
    expect(await joined).toBe('ok');
    expect(await call(clone, 'list_tickets')).toBe('ok unused outstanding');
    await expectOnly([master, clone]);
  });

  it('forks for the second and the tenth time while its older clones run', async () => {
    const master = await seed();
    const made: Guest[] = [];
    for (let round = 0; round < 10; round++) made.push((await forkOne(master)).clone);
    const { clone: grandchild } = await forkOne(made[4] ?? master);
    for (const vm of [master, ...made, grandchild])
      expect(await call(vm, 'whoami')).toBe(`ok ${vm.clusterid} ${vm.vmid}`);
    expect((await call(master, 'list_tickets')).split(' ')).toHaveLength(3 + 10);
    await call(master, 'merge_master *');
    await expectOnly([master]);
  });

  it.each([
    ['exits', (vm: Guest) => vm.exec(['/tmp/vmtest', 'call', 'ic_exit'])],
    [
      'is killed',
      async (vm: Guest) => {
        const pid = (await lab().clonesOn(await lab().hostOf(vm), vm.clusterid)).find(
          ({ vmid }) => vmid === vm.vmid,
        )?.pid;
        process.kill(pid ?? Number.NaN, 'SIGKILL');
      },
    ],
  ])('loses all below a VM in the middle that %s', async (_, end) => {
    const master = await seed();
    const { clones } = await fork(master, 2);
    const [middle, other] = clones as [Guest, Guest];
    const { clones: below } = await fork(middle, 2);
    await fork(below[0] ?? middle, 1);
    await Promise.resolve(end(middle)).catch(() => undefined); // it ends in the middle of the command
    await expectOnly([master, other]);
    expect(await call(other, 'whoami')).toBe(`ok ${other.clusterid} ${other.vmid}`);
    await forkOne(other);
  });

  it('goes on when its sflds are killed, between forks and in the middle of one', async () => {
    const master = await seed();
    const { clone } = await forkOne(master);
    const k = await lab().hostOf(clone);
    const restart = async (): Promise<void> => {
      await lab().killDaemon(k, 'sfld');
      await lab().lab.startDaemon(k, 'sfld');
      await eventually(END_MS, `VM ${clone.name} to answer`, async () => {
        expect(await call(clone, 'whoami')).toBe(`ok ${clone.clusterid} ${clone.vmid}`);
      });
    };
    const { ticket, clone: below } = await forkOne(clone);
    await restart();
    expect(await call(below, 'whoami')).toBe(`ok ${below.clusterid} ${below.vmid}`);
    expect(await call(clone, `merge_master ${ticket}`)).toBe('ok');
    for (const delayMs of KILL_AFTER_MS) {
      const [, unused = ''] = /^Ticket is (\S+)$/m.exec(await clone.run(['sfdotix', '2'])) ?? [];
      await lab().prepared(master, unused);
      const script = `rm -f /run/fork.*; (setsid sh -c 'sleep 0.3; sfdoclone ${unused} >/run/fork.out 2>&1; echo $? >/run/fork.status' >/dev/null 2>&1 &)`;
      await clone.sh(script);
      await sleep(delayMs);
      await restart();
      const status = await clone.file('/run/fork.status', END_MS);
      const said = await clone.file('/run/fork.out');
      // Either it has happened, or it has not, and then nothing of it is left but perhaps the ticket.
      if (status === '0') expect(said).toMatch(new RegExp(`^I am clone ${clone.vmid} with [12] clones`));
      else expect(said).toMatch(/^sfdoclone: (interrupted|unavailable|fork-failed): /);
      expect(await call(clone, 'merge_master *')).toBe('ok');
      await expectOnly([master, clone]);
    }
    expect((await fork(clone, 2)).clones).toHaveLength(2);
  });

  it('loses what is read through a memtap that is killed, and goes on without it', async () => {
    const master = await seed();
    const { ticket, clones } = await fork(master, 2);
    const [middle] = clones as [Guest, Guest];
    const { clones: below } = await fork(middle, 2);
    const k = await lab().hostOf(middle);
    await lab().killOne(k, 'memtap/main.ts', ticket.slice(0, 8));
    expect(await lab().endOf(middle, 'lost', END_MS)).toMatch(/memtap ended/);
    await eventually(END_MS, 'its clones to be gone', async () => {
      for (const vm of below) expect(await lab().vm(vm)).toBeUndefined();
    });
    await forkOne(master);
  });
});
