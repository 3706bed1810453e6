// What ends while no sfld runs on its host, what ends after another sfld has taken it over, and sfld stopped in an orderly way.

import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { describe, expect, it } from 'vitest';
import { eventually } from './support/deadline.ts';
import { compileForGuest } from './support/guest-programs.ts';
import type { Guest } from './support/guest.ts';
import { requireVm } from './require-vm.ts';
import { MICRO, sharedLab } from './support/test-lab.ts';

const RUN = requireVm();
const CALL_MS = 20_000;
/** From the death of a VM's process to its report in sfstate. */
const NOTICED_MS = 5_000;
const BIN = join(import.meta.dirname, '../bin');

describe.skipIf(!RUN)('while no sfld runs, and after another has taken over', () => {
  const lab = sharedLab({ hosts: 2, cpus: 6, ramMib: 2048 });

  const start = (k: number): Promise<unknown> => lab().lab.startDaemon(k, 'sfld');

  /** A master VM on host 1, with two clones on each host. */
  async function forked(): Promise<{ master: Guest; ticket: string; near: Guest[]; far: Guest[] }> {
    const master = await lab().seed(MICRO, { on: 1 });
    const { ticket } = await lab().fork(master, 4);
    const placed = await lab().clonesOf(master, ticket);
    const on = (host: string): Guest[] =>
      placed.filter((each) => each.host === host).map(({ vmid }) => master.sibling(vmid));
    return { master, ticket, near: on('host1'), far: on('host2') };
  }

  async function answers(...guests: Guest[]): Promise<void> {
    for (const guest of guests)
      await eventually(CALL_MS, `VM ${guest.name} to answer`, async () => {
        expect(await guest.run(['hostname'])).toBe(`sf-${guest.clusterid}-${guest.vmid}`);
      });
  }

  it('a clone that ends is lost, with a reason, and no other', async () => {
    const { master, ticket, near, far } = await forked();
    const [victim, other] = far;
    if (!victim || !other) throw new Error('no clones on host 2');
    await lab().killDaemon(2, 'sfld');
    await lab().killOne(2, `-name sf-${victim.name} `);
    await start(2);
    expect(await lab().endOf(victim, 'lost', CALL_MS)).toMatch(/ended while no sfld ran on its host/);
    await answers(master, other, ...near);
    await master.run(['sfmerge', ticket]);
  });

  it('a memtap that ends takes the clones of its host with it', async () => {
    const { master, ticket, near, far } = await forked();
    await lab().killDaemon(2, 'sfld');
    await lab().killOne(2, 'memtap/main.ts');
    await start(2);
    for (const clone of far)
      expect(await lab().endOf(clone, 'lost', CALL_MS)).toMatch(/ended while no sfld ran/);
    await answers(master, ...near);
    expect(await lab().pids(2, 'qemu-system-x86_64')).toEqual([]);
    await master.run(['sfmerge', ticket]);
  });

  it('a memserver that ends takes all clones, and the next fork works', async () => {
    const { master, ticket, near, far } = await forked();
    await lab().killDaemon(1, 'sfld');
    await lab().killOne(1, 'memserver/main.ts');
    await start(1);
    for (const clone of [...near, ...far])
      expect(await lab().endOf(clone, 'lost', CALL_MS)).toMatch(
        /^the parent's memory can no longer be fetched: /,
      );
    await answers(master);
    await master.run(['sfmerge', ticket]);
    const again = await lab().fork(master, 2);
    await master.run(['sfmerge', again.ticket]);
  });

  it('a master VM that ends takes its cluster', async () => {
    const { master } = await forked();
    await lab().killDaemon(1, 'sfld');
    await lab().killOne(1, 'qemu-system-x86 ', `-name sf-${master.clusterid}:0 `);
    await start(1);
    await eventually(CALL_MS, 'the cluster to be gone', async () => {
      expect((await lab().state()).clusters).toEqual([]);
    });
    await lab().expectIdle();
  });

  it('VMs that were taken over: their end is noticed at once, and a power-off is none', async () => {
    const { master, ticket, near, far } = await forked();
    for (const k of [1, 2]) await lab().killDaemon(k, 'sfld');
    for (const k of [1, 2]) await start(k);
    await answers(master, ...near, ...far);
    const [killed, off] = far;
    if (!killed || !off) throw new Error('no clones on host 2');
    await lab().killOne(2, `-name sf-${killed.name} `);
    expect(await lab().endOf(killed, 'lost', NOTICED_MS)).toMatch(/was killed or has crashed/);
    await off.start(['poweroff']);
    expect(await lab().endOf(off, 'exited', CALL_MS)).toMatch(/powered off/);
    const vmtest = await compileForGuest('vmtest');
    const [exits] = near;
    await exits?.put('/tmp/vmtest', vmtest);
    await exits?.start(['/tmp/vmtest', 'call', 'ic_exit']);
    if (exits) expect(await lab().endOf(exits, 'exited', CALL_MS)).toBe('ic_exit');
    await master.run(['sfmerge', ticket]);
  });

  it('calls that wait when sfld ends go on', async () => {
    const { master, ticket, near, far } = await forked();
    await master.put('/tmp/vmtest', await compileForGuest('vmtest'));
    const call = `(setsid sh -c '/tmp/vmtest call ic_join ${ticket} >/run/join' >/dev/null 2>&1 &)`;
    await master.sh(call);
    // More than there is: it waits until clones have ended.
    const more = `(setsid sh -c '/tmp/vmtest call request_clone_ticket 9 0 -1 1 >/run/more' >/dev/null 2>&1 &)`;
    await master.sh(more);
    await eventually(CALL_MS, 'the calls', async () => {
      expect((await master.run(['pidof', 'vmtest'])).split(' ')).toHaveLength(2);
    });
    await sleep(1000);
    for (let times = 0; times < 2; times++) {
      await lab().killDaemon(1, 'sfld');
      await start(1);
      await answers(master);
    }
    expect(await master.sh('cat /run/join /run/more')).toBe(''); // neither was answered
    for (const clone of [...near, ...far]) {
      await clone.put('/tmp/vmtest', await compileForGuest('vmtest'));
      await clone.start(['/tmp/vmtest', 'call', 'ic_exit']);
    }
    expect(await master.file('/run/join', CALL_MS)).toBe('ok');
    await master.run(['sfmerge', ticket]);
    const [, granted] = /^ok 9 (\S+)$/.exec(await master.file('/run/more', CALL_MS)) ?? [];
    expect(await master.run(['/tmp/vmtest', 'call', 'list_tickets'])).toBe(
      `ok unused ${granted} outstanding`,
    );
    await master.run(['/tmp/vmtest', 'call', 'dispose_ticket', granted ?? '']);
  });

  it('sfld stop leaves the VMs to the next; stop --vms ends them', async () => {
    const { master, ticket, near, far } = await forked();
    for (const k of [1, 2]) {
      lab().lab.signalDaemon(k, 'sfld', 'SIGTERM');
      await eventually(CALL_MS, 'the end of sfld', () => {
        expect(lab().lab.daemonPid(k, 'sfld')).toBeUndefined();
      });
    }
    expect((await lab().pids(2, '-name sf-')).length).toBe(2);
    for (const k of [1, 2]) await start(k);
    await answers(master, ...near, ...far);
    const config = join(lab().lab.hosts[1]?.dir ?? '', 'sfld.cfg');
    const { stdout } = await lab().lab.exec(2, [join(BIN, 'sfld'), 'stop', '--vms', '--config', config]);
    expect(stdout).toBe('sfld has stopped\n');
    expect(await lab().pids(2, '-name sf-')).toEqual([]);
    for (const clone of far)
      expect(await lab().endOf(clone, 'lost', NOTICED_MS)).toBe(
        'sfld of host host2 was stopped with its VMs',
      );
    await start(2);
    await answers(master, ...near);
    await master.run(['sfmerge', ticket]);
  });
});
