// Tickets seen from the guests: each wrong use has its refusal, and what there is of resources is all that is given.

import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { eventually, patient, timed } from './support/deadline.ts';
import { getText } from './support/get-text.ts';
import { compileForGuest } from './support/guest-programs.ts';
import type { Guest, GuestProgram } from './support/guest.ts';
import { requireVm } from './require-vm.ts';
import { sharedLab } from './support/test-lab.ts';

const RUN = requireVm();
/** What a call takes that waits for nobody; generous, as the guest runs under emulation on a busy machine. */
const AT_ONCE_MS = 5_000;
const UNKNOWN = '00000000-0000-4000-8000-000000000000';

describe.skipIf(!RUN)('tickets', () => {
  // The master VM takes one of four processors: three clones fit.
  const lab = sharedLab({ hosts: 2, cpus: 2, ramMib: 1024 });
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

  async function request(guest: Guest, line: string): Promise<string> {
    const [, ticket] = /^ok [1-9]\d* (\S+)$/.exec(await call(guest, `request_clone_ticket ${line}`)) ?? [];
    if (ticket === undefined) throw new Error(`request_clone_ticket ${line}: nothing was granted`);
    return ticket;
  }

  /** Until so many requests wait, and go on waiting. */
  async function inLine(count: number): Promise<void> {
    const sfmd = join(lab().lab.dir, 'host-1/master-run/sfmd.sock');
    await eventually(AT_ONCE_MS, `${count} requests in line`, async () => {
      const gauge = /^snowflock_queue_length\{queue="tickets"\} (\d+)$/m;
      expect(gauge.exec(await getText(sfmd, '/metrics'))?.[1]).toBe(String(count));
    });
  }

  it('work once, and only in their own cluster', async () => {
    const [master, stranger] = [await seed(), await seed()];
    const ticket = await request(master, '1 0 1 0');

    for (const [vm, verb, wrong, code] of [
      [master, 'sfdoclone', UNKNOWN, 'no-such-ticket'],
      [master, 'sfdoclone', 'nonsense', 'no-such-ticket'],
      [master, 'sfmerge', UNKNOWN, 'no-such-ticket'],
      [master, 'sfmerge', ticket, 'ticket-unused'],
      [stranger, 'sfdoclone', ticket, 'no-such-ticket'],
      [stranger, 'sfmerge', ticket, 'no-such-ticket'],
    ] as const) {
      const { status, err } = await vm.exec([verb, wrong]);
      expect({ status, err }, `${verb} ${wrong}`).toEqual({
        status: 1,
        err: expect.stringMatching(new RegExp(`^${verb}: ${code}: .*\n$`)) as string,
      });
    }
    for (const verb of ['dispose_ticket', 'read_ticket_info', 'ic_join', 'ic_kill'])
      expect(await call(stranger, `${verb} ${ticket}`)).toMatch(/^err no-such-ticket /);
    expect(await call(master, `ic_join ${ticket}`)).toMatch(/^err ticket-unused /);
    expect((await master.exec(['sfdoclone', ''])).status).toBe(2);

    const used = await master.run(['sfdoclone', ticket]);
    expect(used).toBe('I am the master with 1 clones (original VM).');
    expect(await master.exec(['sfdoclone', ticket])).toMatchObject({
      status: 1,
      err: expect.stringMatching(/^sfdoclone: ticket-used: /) as string,
    });
    expect(await call(master, `dispose_ticket ${ticket}`)).toMatch(/^err ticket-used /);
    await master.run(['sfmerge', ticket]);
    expect((await master.exec(['sfdoclone', ticket])).err).toMatch(/^sfdoclone: ticket-used: .*merged/);

    const disposed = await request(master, '1 0 1 0');
    expect(await call(master, `dispose_ticket ${disposed}`)).toBe('ok');
    expect((await master.exec(['sfdoclone', disposed])).err).toMatch(/^sfdoclone: ticket-disposed: /);
    expect(await call(master, 'list_tickets')).toBe('ok unused outstanding');
  });

  it('are refused for numbers of clones that make no sense', async () => {
    const master = await seed();
    for (const command of ['sfclone', 'sfdotix'])
      for (const wrong of ['0', '-1', 'abc', '', '1.5', '99999999999999999999']) {
        const { status, out, err } = await master.exec([command, wrong]);
        expect({ status, out, err }, `${command} '${wrong}'`).toEqual({
          status: 2,
          out: '',
          err: expect.stringContaining(
            `${command}: NCLONES must be a whole number of 1 or more, not '`,
          ) as string,
        });
      }
    expect((await master.exec(['sfclone'])).status).toBe(2);
    expect(await master.exec(['sfclone', '2000000'])).toMatchObject({
      status: 1,
      err: expect.stringMatching(/^sfclone: bad-request: nclones: /) as string,
    });
    for (const [line, code] of [
      ['1 2 1 0', 'bad-request'],
      ['1 0 2 0', 'bad-request'],
      ['0 0 0 0', 'bad-request'],
      ['x 0 0 0', 'bad-request'],
      ['1 0 0', 'bad-request'],
    ] as const)
      expect(await call(master, `request_clone_ticket ${line}`), line).toMatch(new RegExp(`^err ${code} `));
    expect(await call(master, 'no_such_call')).toMatch(/^err bad-request unknown call/);
    expect(await call(master, 'list_tickets')).toBe('ok unused outstanding');
  });

  it('grant what fits, at least min, and without blocking at once', async () => {
    const master = await seed();
    expect(await call(master, 'request_clone_ticket 10 0 4 0')).toBe('ok 0 -');
    const all = await request(master, '10 0 3 0');
    expect((await call(master, `read_ticket_info ${all}`)).split(' ').slice(2)).toEqual([
      '1:1',
      '2:1',
      '3:1',
    ]);
    for (const line of ['1 0 0 0', '1 0 1 0', '1 0 -1 0', '5 1 0 0']) {
      const { ms, value } = await timed(() => call(master, `request_clone_ticket ${line}`));
      expect(value).toBe('ok 0 -');
      expect(ms).toBeLessThan(patient(AT_ONCE_MS));
    }
    const none = await master.exec(['sfclone', '1']);
    expect(none).toMatchObject({
      status: 1,
      out: 'Requested 1 clones, 0 allocations received.\n',
      err: expect.stringMatching(/^sfclone: no clones can be allocated now: /) as string,
    });
    const never = await timed(() => call(master, 'request_clone_ticket 4 0 -1 1'));
    expect(never.value).toMatch(/^err no-resources 4 clones will never fit: .* room for 3$/);
    expect(never.ms).toBeLessThan(patient(AT_ONCE_MS));
    await call(master, `dispose_ticket ${all}`);
    const partial = await master.run(['sfclone', '10']);
    expect(partial).toMatch(
      /^Requested 10 clones, 3 allocations received\.\n.*\nI am the master with 3 clones/,
    );
  });

  it('are waited for: until a merge, or until whoever waits is gone', async () => {
    const master = await seed();
    const waiting = (count: number): Promise<GuestProgram> =>
      master.start(['/tmp/vmtest', 'call', 'request_clone_ticket', String(count), '0', '-1', '1']);
    const { ticket } = await lab().fork(master, 3);

    await using first = await waiting(2);
    await inLine(1);
    await using killed = await waiting(2);
    await inLine(2);
    await using third = await waiting(1);
    await inLine(3);
    killed.kill(9);
    await killed.exited;
    await inLine(2);
    const { ms } = await timed(() => master.run(['sfmerge', ticket]));
    // In the order of asking, without the one that went: two of the three processors, and the third.
    expect(await first.line(AT_ONCE_MS)).toMatch(/^ok 2 \S+$/);
    expect(await third.line(AT_ONCE_MS)).toMatch(/^ok 1 \S+$/);
    expect(ms).toBeLessThan(patient(AT_ONCE_MS));
    await eventually(AT_ONCE_MS, 'two tickets, and none for the process that was killed', async () => {
      const words = (await call(master, 'list_tickets')).split(' ');
      expect(words.length).toBe('ok unused outstanding'.split(' ').length + 2);
    });
  });

  it('belong to the VM that asked for them; clones alone may exit, the master VM alone shut down', async () => {
    const master = await seed();
    const { ticket, clones } = await lab().fork(master, 2);
    const [clone] = clones;
    if (!clone) throw new Error('no clone');
    for (const verb of ['dispose_ticket', 'clone_master', 'merge_master', 'ic_kill', 'ic_join'])
      expect(await call(clone, `${verb} ${ticket}`), verb).toMatch(
        /^err not-owner .* one of VM \d+:0; VM \d+:1 /,
      );
    expect((await clone.exec(['sfdoclone', ticket])).err).toMatch(/^sfdoclone: not-owner: /);
    expect(await call(clone, 'list_tickets')).toBe('ok unused outstanding');
    expect(await call(clone, 'merge_master *')).toBe('ok');
    expect(await call(clone, 'shutdown_cluster')).toMatch(/^err not-master .*this is \d+:1$/);
    expect(await call(clone, `read_ticket_info ${ticket}`)).toBe(`ok ${ticket} 1:1 2:1`);
    expect(await call(clone, 'whoami')).toBe(`ok ${clone.clusterid} 1`);
    expect(await call(master, 'ic_exit')).toMatch(/^err not-clone /);
    await clone.start(['/tmp/vmtest', 'call', 'ic_exit']);
    expect(await lab().endOf(clone, 'exited', AT_ONCE_MS)).toBe('ic_exit');
    expect(await lab().vm(clones[1] ?? clone)).toMatchObject({ status: 'running' });
  });

  it('outstanding, keep the cluster from being shut down', async () => {
    const master = await seed();
    const { ticket } = await lab().fork(master, 1);
    const refused = /tickets|merge or join first/;
    expect(await master.exec(['sfshutdown'])).toMatchObject({
      status: 1,
      err: expect.stringMatching(/^sfshutdown: tickets-outstanding: .* merge or join first/) as string,
    });
    const byHost = await lab().command('snowflock', ['shutdown', String(master.clusterid)]);
    expect(byHost).toMatchObject({ status: 1, err: expect.stringMatching(refused) as string });
    await master.run(['sfmerge', ticket]);
    await request(master, '2 0 2 0'); // an unused ticket is no obstacle, and is freed
    await master.start(['sfshutdown']);
    await eventually(30_000, 'the cluster to be gone', async () => {
      expect((await lab().state()).clusters).toEqual([]);
    });
    await lab().expectIdle();
  });

  it('serve a C program in every call of sf.h', async () => {
    const master = await lab().seed();
    await master.put('/tmp/capi', await compileForGuest('capi'));
    await using program = await master.start(['/tmp/capi']);
    for (const step of [
      ...[
        'REQUEST_VM_TICKET',
        'READ_TICKET_INFO',
        'DISPOSE_TICKET',
        'CLONE_MASTER',
        'IC_JOIN',
        'IC_EXIT',
        'IC_KILL',
      ],
      ...['MERGE_MASTER', 'MERGE_ALL'],
    ])
      expect(await program.line()).toBe(`ok ${step}`);
    await eventually(30_000, 'the cluster to be gone', async () => {
      expect((await lab().state()).clusters).toEqual([]);
    });
    await lab().expectIdle();
  });
});
