// snowflock fork: a VM is forked from outside, without a call of its guest.

import { beforeAll, describe, expect, it } from 'vitest';
import { ForkVmReply, SystemState } from '@snowflock/protocol';
import { eventually } from './support/deadline.ts';
import { compileForGuest } from './support/guest-programs.ts';
import type { Guest } from './support/guest.ts';
import { requireVm } from './require-vm.ts';
import { sharedLab } from './support/test-lab.ts';

const RUN = requireVm();
const END_MS = 30_000;

describe.skipIf(!RUN)('a fork from outside', () => {
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

  const whoami = (guest: Guest): Promise<string> => guest.run(['/tmp/vmtest', 'call', 'whoami']);

  async function fork(
    vm: Guest,
    count: number,
    ...options: string[]
  ): Promise<{ ticket: string; clones: Guest[] }> {
    const { status, out, err } = await lab().command('snowflock', [
      'fork',
      vm.name,
      String(count),
      ...options,
      '--json',
    ]);
    expect({ status, err }).toEqual({ status: 0, err: '' });
    const { ticket, clones } = ForkVmReply.parse(JSON.parse(out));
    return { ticket, clones: clones.map((clone) => vm.sibling(Number(clone.vm.split(':')[1]))) };
  }

  const onlyLeft = (vms: readonly Guest[]): Promise<void> =>
    eventually(END_MS, `only ${vms.length} VMs to be left`, async () => {
      const [cluster] = SystemState.parse(await lab().state()).clusters;
      expect(cluster?.vms.map(({ vmid }) => vmid)).toEqual(vms.map(({ vmid }) => vmid));
    });

  it('gives each clone its identity, while programs go on that know nothing of it', async () => {
    const master = await seed();
    await master.sh(
      '(setsid sh -c "i=0; while :; do i=\\$((i+1)); echo \\$i >/run/count; usleep 20000; done" >/dev/null 2>&1 &)',
    );
    const { ticket, clones } = await fork(master, 2);
    expect(clones).toHaveLength(2);
    for (const vm of [master, ...clones]) {
      expect(await whoami(vm)).toBe(`ok ${vm.clusterid} ${vm.vmid}`);
      expect(await vm.run(['hostname'])).toBe(`sf-${vm.clusterid}-${vm.vmid}`);
      for (const other of [master, ...clones]) await vm.run(['ping', '-c', '1', '-W', '5', other.ip]);
      const count = (): Promise<string> => vm.file('/run/count');
      const before = Number(await count());
      await eventually(END_MS, 'its program to go on', async () =>
        expect(Number(await count())).toBeGreaterThan(before),
      );
    }
    // The ticket is one of the VM, as if it had asked.
    expect(await master.run(['/tmp/vmtest', 'call', 'list_tickets'])).toBe(`ok unused outstanding ${ticket}`);
    const { out } = await lab().command('snowflock', ['fork', clones[0]?.name ?? '', '1']);
    expect(out).toMatch(/^Ticket is \S+\nVM \d+:3 on \S+\n$/);
    expect(await lab().command('snowflock', ['merge', clones[0]?.name ?? ''])).toMatchObject({ status: 0 });
    await onlyLeft([master, ...clones]);
    expect(await lab().command('snowflock', ['merge', ticket])).toMatchObject({ status: 0, err: '' });
    await onlyLeft([master]);
    expect(await lab().command('snowflock', ['merge', ticket])).toMatchObject({
      status: 1,
      err: expect.stringContaining(`no cluster has ticket ${ticket}`) as string,
    });
  });

  it('goes beside forks that the guest asks for', async () => {
    const master = await seed();
    const [ours, its] = await Promise.all([fork(master, 1), lab().fork(master, 1)]);
    for (const vm of [master, ...ours.clones, ...its.clones])
      expect(await whoami(vm)).toBe(`ok ${vm.clusterid} ${vm.vmid}`);
  });

  it('is refused when there is no such VM, or no room, and leaves nothing', async () => {
    const master = await seed();
    const refusal = async (...args: string[]): Promise<string> => {
      const { status, err } = await lab().command('snowflock', ['fork', ...args]);
      expect(status).toBe(1);
      return err;
    };
    expect(await refusal(`${master.clusterid}:7`, '1')).toMatch(/there is no VM \d+:7/);
    expect(await refusal(master.name, '100')).toMatch(/no room for 100 clones/);
    expect((await lab().state()).clusters[0]?.tickets).toEqual([]);
    const { clones } = await fork(master, 100, '--min', '3');
    expect(clones).toHaveLength(7);
  });

  it('of a guest without an agent is refused, or makes clones that are not on the network', async () => {
    const master = await seed();
    // A program in the agent's place that says nothing: as in a guest that has never heard of SnowFlock.
    const silent = `killall -9 sfagent\nuntil ( sleep 100000 ) 3<>/dev/virtio-ports/snowflock; do killall -9 sfagent; done`;
    await master
      .sh(`cat >/tmp/silent <<'END'\n${silent}\nEND\nsetsid sh /tmp/silent >/dev/null 2>&1 </dev/null &`)
      .catch(() => undefined); // the agent that runs it is killed
    const k = await lab().hostOf(master);
    await eventually(END_MS, 'the agent to be gone', async () => {
      await lab().killDaemon(k, 'sfld'); // the next one has never heard of an agent in it
      await lab().lab.startDaemon(k, 'sfld');
      const { status, err } = await lab().command('snowflock', ['fork', master.name, '1']);
      expect({ status, err }).toEqual({
        status: 1,
        err: expect.stringMatching(/no SnowFlock agent answers in VM \d+:0.*--isolated/) as string,
      });
    });
    expect(await lab().command('snowflock', ['checkpoint', 'create', master.name, 'silent'])).toMatchObject({
      status: 1,
      err: expect.stringMatching(/no SnowFlock agent answers in VM \d+:0/) as string,
    });
    const { clones } = await fork(master, 2, '--isolated');
    expect(clones).toHaveLength(2);
    const running = (await Promise.all([1, 2].map((each) => lab().clonesOn(each, master.clusterid)))).flat();
    expect(running).toHaveLength(2);
    for (const each of [1, 2]) {
      const { stdout } = await lab().lab.exec(each, ['ip', '-o', 'link']);
      const taps = stdout.split('\n').filter((line) => /: sft[^:]*-[12][@:]/.test(line));
      for (const tap of taps) expect(tap).not.toMatch(/<[^>]*\bUP\b/);
    }
    expect(await lab().command('snowflock', ['merge', master.name])).toMatchObject({ status: 0 });
    await onlyLeft([master]);
  });
});
