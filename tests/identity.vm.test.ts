// The identity contract (docs/identity.md): what programs see of a fork in the master VM and in its clones, and the hooks.

import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { eventually } from './support/deadline.ts';
import { compileForGuest } from './support/guest-programs.ts';
import type { Guest } from './support/guest.ts';
import { requireVm } from './require-vm.ts';
import { MICRO, sharedLab } from './support/test-lab.ts';

const RUN = requireVm();
const GENERATORS = join(import.meta.dirname, 'support/guest/generators.py');
const PORT = 4242;
/** Long before any time-out of TCP. */
const RESET_MS = 10_000;

describe.skipIf(!RUN)('the identity of a clone', () => {
  const lab = sharedLab({ hosts: 2, cpus: 8, ramMib: 2048 });
  let program: Buffer;
  beforeAll(async () => {
    program = await compileForGuest('identity');
  });

  async function boot(vcpus = 1): Promise<Guest> {
    const master = await lab().seed({ ...MICRO, vcpus });
    await master.put('/tmp/identity', program);
    return master;
  }

  /** Starts a command of the program, and waits for the first that it tells. */
  async function start(guest: Guest, command: string, file?: string): Promise<void> {
    await guest.sh(`/tmp/identity ${command} ${file ?? ''} >/dev/null 2>&1 &`);
    if (file !== undefined) await guest.file(file);
  }

  async function hook(guest: Guest, name: string, script: string): Promise<void> {
    await guest.sh('mkdir -p /etc/snowflock/clone.d');
    await guest.put(`/etc/snowflock/clone.d/${name}`, `#!/bin/sh\n${script}\n`);
  }

  it('is seen whole by every program: never one part of it new and another old', async () => {
    const master = await boot(2);
    await start(master, 'watch', '/run/seen');
    const { clones } = await lab().fork(master, 2);
    const [first] = (await master.file('/run/seen')).split('\n');
    expect(first).toMatch(new RegExp(`^sf-${master.clusterid}-0 10\\.0\\.0\\.1 `));
    for (const clone of clones) {
      const seen = await eventually(RESET_MS, 'the clone to be seen', async () => {
        const lines = (await clone.run(['cat', '/run/seen'])).split('\n');
        expect(lines.length).toBeGreaterThan(1);
        return lines;
      });
      const mac = await clone.run(['cat', '/sys/class/net/eth0/address']);
      expect(seen).toEqual([first, `sf-${clone.clusterid}-${clone.vmid} ${clone.ip} ${mac}`]);
    }
    expect(await master.file('/run/seen')).toBe(first);
  });

  it('ends the TCP connections of the master VM in the clone, at once; its own go on, and the master VM notices nothing', async () => {
    const master = await boot();
    const peer = (await lab().fork(master, 1)).clones[0]!;
    for (const vm of [peer, master]) await start(vm, `serve ${PORT}`);
    await eventually(RESET_MS, 'the servers to listen', async () => {
      for (const vm of [peer, master]) await vm.sh(`netstat -ltn | grep -q :${PORT}`);
    });
    await start(master, `tcp ${peer.ip} ${PORT}`, '/run/tcp.peer');
    await start(master, `tcp 127.0.0.1 ${PORT}`, '/run/tcp.loopback');
    await start(master, `tcp 10.0.0.1 ${PORT}`, '/run/tcp.self');
    await start(master, `udp ${peer.ip} ${PORT}`, '/run/udp.peer');
    const clone = (await lab().fork(master, 1)).clones[0]!;
    const rounds = async (vm: Guest, file: string): Promise<number> =>
      Number(/^alive (\d+)$/.exec(await vm.file(file))?.[1]);
    for (const file of ['/run/tcp.peer', '/run/tcp.self'])
      await eventually(RESET_MS, `${file} to end`, async () => {
        expect(await clone.run(['cat', file])).toBe('error ECONNABORTED');
      });
    await eventually(RESET_MS, 'an error of UDP', async () => {
      expect(await clone.run(['cat', '/run/udp.peer'])).toBe('error ENETUNREACH');
    });
    for (const [vm, file] of [
      [clone, '/run/tcp.loopback'],
      [master, '/run/tcp.loopback'],
      [master, '/run/tcp.peer'],
      [master, '/run/tcp.self'],
      [master, '/run/udp.peer'],
    ] as const) {
      const before = await rounds(vm, file);
      await eventually(RESET_MS, `${file} of ${vm.name} to go on`, async () => {
        expect(await rounds(vm, file)).toBeGreaterThan(before + 1);
      });
    }
    await start(clone, `tcp ${peer.ip} ${PORT}`, '/run/tcp.own');
  });

  it('has a clock that was set: absolute timers of the wall clock say so, others run on; locks and pids are as they were', async () => {
    const master = await boot();
    await start(master, 'lock', '/run/lock');
    await start(master, 'timers', '/run/timers');
    const { clones } = await lab().fork(master, 1);
    for (const vm of [master, ...clones]) {
      await eventually(RESET_MS, 'both timers', async () => {
        expect((await vm.run(['cat', '/run/timers'])).split('\n')).toEqual(
          expect.arrayContaining(['realtime ECANCELED', 'relative fired']),
        );
      });
      const holder = 'tr "\\0" " " < /proc/$(cat /run/lock)/cmdline';
      expect(await vm.sh(`${holder}; /tmp/identity trylock /run/lock`)).toBe(
        '/tmp/identity lock /run/lock held',
      );
      await vm.sh('killall identity');
      // Each VM has locks of its own.
      await eventually(RESET_MS, 'the lock to be free', async () => {
        expect(await vm.sh('/tmp/identity trylock /run/lock')).toBe('free');
      });
    }
  });

  it('is in force when the hooks of clone.d run; other programs stand still until they have', async () => {
    const master = await boot(2);
    await start(master, 'spin 2', '/run/counts');
    await hook(
      master,
      '10-first',
      'cat /run/counts >/run/at; sleep 0.5; cat /run/counts >>/run/at; hostname >/run/hook; nproc >>/run/hook',
    );
    await hook(
      master,
      '20-second.sh',
      'echo $SNOWFLOCK_VMID $SNOWFLOCK_NCLONES $SNOWFLOCK_IP $SNOWFLOCK_SEED $SNOWFLOCK_TICKET >>/run/hook; ' +
        'test -e /run/sfclone.status && echo late >>/run/hook; sleep 1000 & true',
    );
    const { ticket, clones } = await lab().fork(master, 2);
    expect((await master.exec(['cat', '/run/hook'])).status).toBe(1);
    for (const clone of clones) {
      expect((await clone.file('/run/hook')).split('\n')).toEqual([
        `sf-${clone.clusterid}-${clone.vmid}`,
        '2',
        `${clone.vmid} 2 ${clone.ip} fresh ${ticket}`,
      ]);
      const [before, after] = (await clone.file('/run/at')).split('\n');
      expect(before).toMatch(/^\d+ \d+$/);
      expect(after).toBe(before);
      expect(await clone.sh('sleep 0.2; cat /sys/fs/cgroup/snowflock.agent/cgroup.procs | wc -l')).toBe('1');
      const counts = await clone.file('/run/counts');
      await eventually(RESET_MS, 'the others to go on', async () => {
        const now = (await clone.file('/run/counts')).split(' ').map(Number);
        counts.split(' ').forEach((count, cpu) => {
          if (count !== '') expect(now[cpu]).toBeGreaterThan(Number(count));
        });
      });
    }
  });

  it('is not had by a clone whose hook fails: it is lost, with the reason, and the others run', async () => {
    const master = await boot();
    await hook(
      master,
      '50-check',
      'echo checking; [ $SNOWFLOCK_VMID != 2 ] || { echo no key for clone 2; exit 7; }',
    );
    const printed = await master.run(['sfclone', '2']);
    expect(printed).toContain('I am the master with 1 clones');
    expect(await lab().endOf(master.sibling(2), 'lost', RESET_MS)).toBe(
      'hook 50-check failed with status 7: no key for clone 2',
    );
    expect(await lab().vm(master.sibling(1))).toMatchObject({ status: 'running' });
    const ticket = /^Ticket is (\S+)$/m.exec(printed)?.[1] ?? '';
    await master.run(['sfmerge', ticket]);
    await hook(master, '60-never', 'exit 1');
    const { status, err } = await master.exec(['sfclone', '1']);
    expect({ status, err }).toEqual({
      status: 1,
      err: expect.stringMatching(
        /^sfclone: fork-failed: no clone of ticket \S+ could be started: hook 60-never failed with status 1\n$/,
      ) as string,
    });
    await master.sh('rm /etc/snowflock/clone.d/*');
    expect((await lab().fork(master, 1)).clones.length).toBe(1);
  });

  it.each(['fresh', 'same'])(
    'has generators of the C library that are %s, as sf_clone_master asks',
    async (seed) => {
      const master = await boot();
      const drawn = new Set<string>();
      await master.sh(`/tmp/identity draw ${seed} /run/drawn`);
      for (const vm of [master, master.sibling(1), master.sibling(2)]) drawn.add(await vm.file('/run/drawn'));
      expect(drawn.size).toBe(seed === 'same' ? 1 : 3);
    },
  );

  it('has generators in Python, OpenSSL and the kernel: which differ by themselves, which by a seed, which never agree', async () => {
    const master = await lab().seed({ diskImage: 'debian', vcpus: 1, memoryMib: 192 });
    await master.put('/root/generators.py', readFileSync(GENERATORS));
    for (const seed of ['fresh', 'same']) {
      await using session = await master.start(['python3', '/root/generators.py', seed]);
      const ticket = await session.line();
      const vms = [master, ...(await lab().clonesOf(master, ticket)).map(({ vmid }) => master.sibling(vmid))];
      const drawn = await Promise.all(
        vms.map(async (vm) => {
          const [vmid, ...lines] = (await vm.file(`/run/drawn.${seed}`)).split('\n');
          expect(Number(vmid)).toBe(vm.vmid);
          return new Map(lines.map((line) => line.split(' ') as [string, string]));
        }),
      );
      const different = Object.fromEntries(
        ['random', 'openssl', 'urandom', 'secrets', 'uuid4', 'process'].map((name) => [
          name,
          new Set(drawn.map((each) => each.get(name))).size,
        ]),
      );
      const alike = seed === 'same' ? 1 : 3;
      expect(different).toEqual({
        ...{ random: alike, openssl: alike },
        ...{ urandom: 3, secrets: 3, uuid4: 3, process: 3 },
      });
      expect(await session.ask('')).toBe('merged');
    }
  });
});
