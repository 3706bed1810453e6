// Master VMs of several processors, and the clones of processor tickets, which may have fewer (manual, section 5).

import { beforeAll, describe, expect, it } from 'vitest';
import { eventually } from './support/deadline.ts';
import { compileForGuest } from './support/guest-programs.ts';
import type { Guest } from './support/guest.ts';
import { requireVm } from './require-vm.ts';
import { MICRO, sharedLab } from './support/test-lab.ts';

const RUN = requireVm();
const PROGRESS_MS = 20_000;

describe.skipIf(!RUN)('processors', () => {
  const lab = sharedLab({ hosts: 2, cpus: 8, ramMib: 2048 });
  let program: Buffer;
  let vmtest: Buffer;
  beforeAll(async () => {
    [program, vmtest] = await Promise.all([compileForGuest('identity'), compileForGuest('vmtest')]);
  });

  async function seed(vcpus: number): Promise<Guest> {
    const master = await lab().seed({ ...MICRO, memoryMib: 128, vcpus });
    await master.put('/tmp/identity', program);
    await master.put('/tmp/vmtest', vmtest);
    return master;
  }

  const call = (guest: Guest, line: string): Promise<string> =>
    guest.run(['/tmp/vmtest', 'call', ...line.split(' ')]);

  /** A busy thread bound to each processor, in the middle of its work at any time. */
  async function spin(guest: Guest, cpus: number): Promise<void> {
    await guest.sh(`/tmp/identity spin ${cpus} /run/counts >/dev/null 2>&1 &`);
    await guest.file('/run/counts');
  }

  async function expectProgress(guest: Guest, cpus: number): Promise<void> {
    const counts = async (): Promise<number[]> =>
      (await guest.file('/run/counts')).trim().split(' ').map(Number);
    const before = await counts();
    expect(before.length).toBe(cpus);
    await eventually(PROGRESS_MS, `all ${cpus} processors of ${guest.name} to make progress`, async () => {
      (await counts()).forEach((count, cpu) => expect(count).toBeGreaterThan(before[cpu] ?? Number.NaN));
    });
  }

  it.each([2, 4])('are all there in clones of a master VM of %i, whatever ran on them', async (cpus) => {
    const master = await seed(cpus);
    await spin(master, cpus);
    const { clones } = await lab().fork(master, 1);
    for (const vm of [master, ...clones]) {
      expect(await vm.sh('nproc; hostname')).toBe(`${cpus}\nsf-${vm.clusterid}-${vm.vmid}`);
      await expectProgress(vm, cpus);
    }
  });

  it('of a processor ticket are spread over clones, each with as many online as read_ticket_info says', async () => {
    const master = await seed(3);
    await spin(master, 3);
    const [, ticket = ''] = /^ok 5 (\S+)$/.exec(await call(master, 'request_clone_ticket 5 1 -1 1')) ?? [];
    const info = (await call(master, `read_ticket_info ${ticket}`)).split(' ').slice(2);
    expect(info.map((each) => each.split(':')[1]).sort()).toEqual(['2', '3']);
    await master.sh(`sfdoclone ${ticket} > /run/said; nproc > /run/first`);
    expect(await master.sh('nproc; cat /run/said')).toBe('3\nI am the master with 2 clones (original VM).');
    for (const each of info) {
      const [vmid, processors] = each.split(':').map(Number);
      const clone = master.sibling(vmid!);
      expect(await clone.file('/run/first')).toBe(String(processors)); // at once, for the program that forked
      expect(await clone.sh('nproc; hostname')).toBe(`${processors}\nsf-${clone.clusterid}-${vmid}`);
      await expectProgress(clone, 3);
    }
  });

  it('that a clone was not given have the lowest priority on its host, if the guest puts them online again', async () => {
    const master = await seed(2);
    const [, ticket = ''] = /^ok 1 (\S+)$/.exec(await call(master, 'request_clone_ticket 1 1 -1 1')) ?? [];
    await master.sh(`sfdoclone ${ticket}`);
    const clone = master.sibling(1);
    expect(await clone.sh('nproc')).toBe('1');
    await clone.sh('echo 1 > /sys/devices/system/cpu/cpu1/online; nproc');
    const [record] = await lab().clonesOn(await lab().hostOf(clone), clone.clusterid);
    const ps = ['ps', '-L', '-o', 'ni=', '-p', String(record?.pid)];
    const { stdout } = await lab().lab.exec(await lab().hostOf(clone), ps);
    const priorities = stdout.trim().split(/\s+/).sort();
    expect(priorities.length).toBeGreaterThan(3);
    expect(new Set(priorities.slice(0, -1))).toEqual(new Set(['0']));
    expect(priorities.at(-1)).toBe('19');
  });
});
