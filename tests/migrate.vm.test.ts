// Migration: a VM goes on on another host as who it was, with all that it has.

import { describe, expect, it } from 'vitest';
import { setTimeout as sleep } from 'node:timers/promises';
import { HostState, MigrateReply, SnowflockError } from '@snowflock/protocol';
import { eventually, patient } from './support/deadline.ts';
import type { Guest } from './support/guest.ts';
import { MemoryTest } from './support/memtest.ts';
import { requireVm } from './require-vm.ts';
import { MICRO, sharedLab } from './support/test-lab.ts';

const RUN = requireVm();
const AREA_MIB = 24;
const FETCH_MS = 60_000;
const SETTLE_MS = 60_000;
/** From before the first migration to the end of the test. */
const JOIN_MS = 120_000;
const POLL_MS = 100;
/** Both hosts prepare, results go, the VM goes, its memory follows: on an idle machine 0.7 s and another second. */
const KILLS = [
  { side: 'to', afterMs: 600 },
  { side: 'from', afterMs: 1_100 },
] as const;

describe.skipIf(!RUN)('migration', () => {
  const lab = sharedLab({ hosts: 3, cpus: 4, ramMib: 2048 });

  const nameOf = (k: number): string => lab().lab.hosts[k - 1]?.name ?? '';
  const migrate = (vm: Guest, host: string) => lab().command('snowflock', ['migrate', vm.name, host]);

  async function expectMigrated(vm: Guest, k: number): Promise<void> {
    const said = new RegExp(`^VM ${vm.name} runs on ${nameOf(k)}, paused for \\d+ ms\\n$`);
    const printed = await migrate(vm, nameOf(k));
    expect(printed).toMatchObject({ status: 0, err: '', out: expect.stringMatching(said) as string });
    expect(await lab().hostOf(vm)).toBe(k);
    expect(await vm.run(['hostname'])).toBe(`sf-${vm.clusterid}-${vm.vmid}`);
  }

  /** Hosts without any process or mount for this VM's cluster. */
  async function expectNothingOn(k: number): Promise<void> {
    await eventually(FETCH_MS, `nothing to be left on host ${k}`, async () => {
      const { masters, clones, sources, groups } = await lab().get('/v1/state', HostState, k);
      expect({ masters, clones, sources, groups }).toEqual({
        ...{ masters: [], clones: [], sources: [], groups: [] },
      });
      expect(await lab().pids(k, 'sf-frozen')).toEqual([]);
    });
  }

  it('takes along memory, disk, name and connections of a master VM and of a clone, tickets and results', async () => {
    const master = await lab().seed({ ...MICRO, memoryMib: 128 }, { on: 1 });
    await master.sh('echo before > /disk/file; sync');
    await using memory = await MemoryTest.start(lab(), master, { areaMib: AREA_MIB, detached: true });
    const { ticket, clones } = await lab().fork(master, 1);
    const [clone] = clones as [Guest];
    const home = await lab().hostOf(clone);
    // Numbers flow from the master VM to the clone all the while.
    await clone.sh('head -c 4194304 /dev/urandom > /run/data; md5sum /run/data > /run/sum');
    await clone.sh('echo own > /disk/own; sync');
    await clone.sh(
      "setsid sh -c 'sleep 1000 | nc -l -p 7000 >/run/got' >/dev/null 2>&1 </dev/null & usleep 200000",
    );
    await master.sh(
      `setsid sh -c 'i=0; while :; do i=$((i+1)); echo $i; usleep 50000; done | nc ${clone.ip} 7000' >/dev/null 2>&1 </dev/null &`,
    );
    const flows = async (): Promise<void> => {
      const count = async (): Promise<number> => Number(await clone.sh('wc -l < /run/got'));
      const before = await count();
      await eventually(SETTLE_MS, 'more to come', async () => {
        expect(await count()).toBeGreaterThan(before + 10);
      });
      const wrong = await clone.sh("awk '$1 != NR { print NR; exit }' /run/got");
      expect(wrong).toBe('');
    };
    await flows();
    const joined = master.exec(['sfjoin', ticket], { deadlineMs: JOIN_MS });
    joined.catch(() => undefined); // awaited below
    const [other = 2] = [2, 3].filter((k) => k !== home);
    await expectMigrated(clone, home === 1 ? 2 : other);
    await flows();
    await clone.sh('md5sum -c /run/sum >/dev/null');
    expect(await clone.sh('echo 3 > /proc/sys/vm/drop_caches; cat /disk/file /disk/own')).toBe('before\nown');
    await expectMigrated(master, 3);
    await flows();
    expect(await master.sh('cat /disk/file; echo after > /disk/file; sync')).toBe('before');
    // It checks all of its memory, and forks from where it is now.
    const second = await memory.fork(1);
    for (const each of second.clones) await memory.expectRight(each);
    await memory.merge(second.ticket);
    await eventually(FETCH_MS, 'the first host to be let go of', async () => {
      expect((await lab().state()).hosts[0]).toMatchObject({ vms: 0 });
    });
    await clone.sh('sfexit 0 </dev/null').catch(() => undefined);
    expect(await joined).toMatchObject({ status: 0, err: '' });
    await expectNothingOn(1);
  });

  /** Asked of a host whose sfld is not killed, as soon as what the last one has left is gone. */
  async function migrateFrom3(vm: Guest, host: string): Promise<MigrateReply> {
    const path = `/v1/master/clusters/${vm.clusterid}/vms/${vm.vmid}/migrate`;
    const asked = { body: { host }, reply: MigrateReply, timeoutMs: patient(SETTLE_MS) };
    for (const end = performance.now() + FETCH_MS; ;) {
      try {
        return await lab()
          .lab.client(3)
          .request({ method: 'POST', path, ...asked });
      } catch (error) {
        const isBusy = error instanceof SnowflockError && error.code === 'busy';
        if (!isBusy || performance.now() > end) throw error;
      }
      await sleep(POLL_MS);
    }
  }

  it('goes on, on one host alone, when an sfld is killed in the middle', async () => {
    const master = await lab().seed(MICRO, { on: 1 });
    const counting =
      'i=0; while :; do i=$((i+1)); echo $i > /run/i; mv /run/i /run/count; usleep 20000; done';
    await master.sh(`setsid sh -c '${counting}' >/dev/null 2>&1 </dev/null &`);
    const count = async (): Promise<number> => Number(await master.file('/run/count'));
    for (const { side, afterMs } of KILLS) {
      const before = await count();
      const from = await lab().hostOf(master);
      const to = from === 1 ? 2 : 1;
      const ended = migrateFrom3(master, nameOf(to)).then(
        () => 'moved',
        (error: unknown) => String(error),
      );
      await sleep(afterMs);
      const killed = side === 'from' ? from : to;
      await lab().killDaemon(killed, 'sfld');
      await lab().lab.startDaemon(killed, 'sfld');
      await lab().hostsUp();
      expect(await ended).toMatch(/^moved$|stays on host/);
      await eventually(SETTLE_MS, `VM ${master.name} to go on`, async () => {
        expect(await count()).toBeGreaterThan(before);
      });
      // Where it was it is listed, paused, until that host has learnt that it runs on the other one.
      await eventually(SETTLE_MS, 'one host to have it', async () => {
        const states = await Promise.all([1, 2].map((k) => lab().get('/v1/state', HostState, k)));
        expect(states.flatMap(({ masters }) => masters)).toEqual([master.name]);
      });
      await eventually(FETCH_MS, 'nothing of it to be left elsewhere', async () => {
        const { hosts } = await lab().state();
        expect(hosts.filter(({ ramBytes, ramFreeBytes }) => ramFreeBytes < ramBytes)).toHaveLength(1);
      });
    }
  });

  it('is refused with the reason, and the VM stays', async () => {
    const master = await lab().seed(MICRO, { on: 1 });
    const refused = async (host: string, why: RegExp, vm = master.name): Promise<void> => {
      const printed = await lab().command('snowflock', ['migrate', vm, host]);
      expect(printed).toMatchObject({ status: 1, err: expect.stringMatching(why) as string });
    };
    await refused(nameOf(1), /is on host \S+ already/);
    await refused('nowhere', /'nowhere' is not in cluster_hosts/);
    await refused(nameOf(2), /there is no VM/, `${master.clusterid}:77`);
    await refused(nameOf(2), /there is no cluster/, '4711:0');
    // A ticket for all there is.
    await master.run(['sfdotix', '11']);
    await refused(nameOf(2), /has no room for VM \S+, which needs 1 cpus and 96 MiB: 0 cpus/);
    expect(await master.run(['hostname'])).toBe(`sf-${master.clusterid}-0`);
  });
});
