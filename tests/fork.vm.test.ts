// The fork as its users meet it: what sfclone prints, who the clones are, that they differ where they must, and the
// commands of the host that reach them.

import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { Draws } from './support/draws.ts';
import { compileForGuest } from './support/guest-programs.ts';
import { PROBES, type Guest } from './support/guest.ts';
import { requireVm } from './require-vm.ts';
import { sharedLab } from './support/test-lab.ts';

const RUN = requireVm();

describe.skipIf(!RUN)('a fork', () => {
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

  /** How far the guest's clock is off the host's, in ms; the time that the question takes counts for it. */
  async function clockErrorMs(guest: Guest): Promise<number> {
    const before = Date.now();
    const guestMs = Number(BigInt(await guest.run(['/tmp/vmtest', 'clock'])) / 1_000_000n);
    return Math.max(before - guestMs, guestMs - Date.now(), 0);
  }

  it('makes four clones over two hosts, each with an identity of its own', async () => {
    const master = await seed();
    const { ticket, clones, printed } = await lab().fork(master, 4);
    expect(printed).toBe(
      `Requested 4 clones, 4 allocations received.\nTicket is ${ticket}\nI am the master with 4 clones (original VM).`,
    );
    expect(clones.map(({ vmid }) => vmid)).toEqual([1, 2, 3, 4]);
    const placed = await lab().clonesOf(master, ticket);
    const perHost = lab().lab.hosts.map(({ name }) => placed.filter(({ host }) => host === name).length);
    expect(perHost).toEqual([2, 2]);

    const macs = new Set<string>();
    for (const vm of [master, ...clones]) {
      const { vmid } = vm;
      const facts = await vm.sh(
        'hostname; cat /sys/class/net/eth0/address; ip -4 -o addr show eth0; cat /run/snowflock/identity',
      );
      const [hostname, mac = '', address, ...identity] = facts.split('\n');
      expect(hostname).toBe(`sf-${vm.clusterid}-${vmid}`);
      macs.add(mac);
      expect(address).toMatch(new RegExp(` inet ${vm.ip.replaceAll('.', '\\.')}/16 `));
      expect(identity).toContain(`vmid=${vmid}`);
      expect(identity.join('\n')).not.toContain('entropy');
      expect(await clockErrorMs(vm)).toBeLessThan(1000);
      if (vm === master) continue;
      expect(await vm.file('/run/sfclone.out')).toContain(`I am clone ${vmid} (cloned VM).`);
      expect(await vm.file('/run/sfclone.status')).toBe('0');
    }
    expect(macs.size).toBe(5);
  });

  it('never gives two VMs the same random bytes', async () => {
    const master = await seed();
    // Draws before, during and after the fork. The kernel reseeds its generator every few seconds by itself, which would hide
    // that the fork does not: so it does it right before.
    await Draws.begin(master);
    const ticket = /^Ticket is (\S+)$/m.exec(await master.run(['sfdotix', '4']))?.[1] ?? '';
    await lab().prepared(master, ticket);
    await master.run(['sh', '-c', '/tmp/vmtest reseed; sfdoclone $1 >/run/sfclone.out', 'sh', ticket]);
    const clones = (await lab().clonesOf(master, ticket)).map(({ vmid }) => master.sibling(vmid));
    const fresh = new Map<string, string>();
    const draws = new Draws();
    for (const vm of [master, ...clones]) {
      for (const word of (await vm.sh(`for i in 1 2 3 4; do ${PROBES}/sfrandom 16; done`)).split('\n')) {
        expect(word).toMatch(/^[0-9a-f]{32}$/);
        expect(fresh.get(word)).toBeUndefined();
        fresh.set(word, vm.name);
      }
      expect(await draws.addThoseOf(vm)).toBeGreaterThan(100);
    }
    expect(fresh.size).toBe(20);
  });

  it('forks again while the clones of the first fork run, and merges each by itself', async () => {
    const master = await seed();
    const first = await lab().fork(master, 2);
    await first.clones[0]?.sh('echo mine > /run/mine');
    const second = await lab().fork(master, 2);
    expect(second.clones.map(({ vmid }) => vmid)).toEqual([3, 4]);
    expect(await first.clones[0]?.sh('cat /run/mine')).toBe('mine');
    expect(await master.run(['sfmerge', first.ticket])).toBe(
      `Attempting to merge virtual cluster...\nSuccessful merge for ticket ${first.ticket}`,
    );
    for (const clone of second.clones)
      expect(await clone.run(['hostname'])).toBe(`sf-${clone.clusterid}-${clone.vmid}`);
    const third = await lab().fork(master, 1);
    expect(third.clones.map(({ vmid }) => vmid)).toEqual([5]);
    expect(await master.run(['sfmerge', ''])).toContain('Successful merge for all tickets');
    expect((await lab().state()).clusters[0]?.vms.map(({ vmid }) => vmid)).toEqual([0]);
  });

  it('lets the commands of host 1 reach clones on host 2', async () => {
    const master = await seed();
    const { clones } = await lab().fork(master, 2);
    const hosts = await Promise.all(clones.map((clone) => lab().hostOf(clone)));
    const remote = clones[hosts.indexOf(2)];
    if (!remote) throw new Error('no clone is on host 2');
    const dir = mkdtempSync('/tmp/sft-cp-');
    try {
      const answer = await lab().command(
        'snowflock',
        ['exec', remote.name, '--', 'sh', '-c', 'cat; hostname >&2; exit 5'],
        {
          input: 'in',
        },
      );
      expect(answer).toMatchObject({ status: 5, out: 'in', err: `sf-${remote.clusterid}-${remote.vmid}\n` });
      const data = Buffer.alloc(300_000, 'snowflock ');
      writeFileSync(join(dir, 'data'), data);
      const quiet = { status: 0, out: '', err: '' };
      expect(
        await lab().command('snowflock', ['cp', join(dir, 'data'), `${remote.name}:/tmp`]),
      ).toMatchObject(quiet);
      expect(
        await lab().command('snowflock', ['cp', `${remote.name}:/tmp/data`, join(dir, 'back')]),
      ).toMatchObject(quiet);
      expect(readFileSync(join(dir, 'back')).equals(data)).toBe(true);
      const console = await lab().command('snowflock', ['console', remote.name], {
        input: 'echo $((6*7)) $(hostname)\n',
      });
      expect(console.out).toContain(`42 sf-${remote.clusterid}-${remote.vmid}`);
    } finally {
      rmSync(dir, { recursive: true });
    }
  });
});
