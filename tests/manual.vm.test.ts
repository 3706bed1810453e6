// The 0.2c manual, kept: its two sessions as they stand (section 3), and what its reference promises about the commands of a
// VM, Python and C (sections 4, 5, 6), sentence by sentence.

import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import type { VmShape } from '@snowflock/protocol';
import { eventually } from './support/deadline.ts';
import { compileForGuest } from './support/guest-programs.ts';
import type { Guest } from './support/guest.ts';
import { requireVm } from './require-vm.ts';
import { MICRO, sharedLab, type TestLab } from './support/test-lab.ts';

const RUN = requireVm();
const GONE_MS = 45_000;
const PROGRAM = join(import.meta.dirname, 'support/guest/manual.py');
const UUID = '[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}';
const DEBIAN: VmShape = { diskImage: 'debian', vcpus: 1, memoryMib: 192 };

async function gone(lab: TestLab): Promise<void> {
  await eventually(GONE_MS, 'the cluster to be gone', async () => {
    expect((await lab.state()).clusters).toEqual([]);
  });
  await lab.expectIdle();
}

describe.skipIf(!RUN)('manual, section 3', () => {
  const lab = sharedLab({ hosts: 2, cpus: 2, ramMib: 1024 });

  it('the session of a shell runs as it stands', async () => {
    const dir = mkdtempSync('/tmp/sft-manual-');
    let master: Guest;
    try {
      writeFileSync(join(dir, 'sfseed.cfg'), 'disk_image = "micro"\nvcpus = 1\nmemory = 128\n');
      const { status, out } = await lab().command('sfseed', [join(dir, 'sfseed.cfg')]);
      const [, domain] = /^\((\d+), '10\.0\.0\.1'\)\n$/.exec(out) ?? [];
      expect({ status, domain }).toEqual({ status: 0, domain: expect.any(String) as string });
      master = lab().guest(Number(domain));
    } finally {
      rmSync(dir, { recursive: true });
    }
    const ticketOf = (printed: string): string =>
      new RegExp(`^Ticket is (${UUID})$`, 'm').exec(printed)?.[1] ?? '';
    const printed = await master.run(['sfdotix', '1']);
    const first = ticketOf(printed);
    expect(printed).toBe(`Requested 1 clones, 1 allocations received.\nTicket is ${first}`);
    expect(await master.run(['sfdoclone', first])).toBe('I am the master with 1 clones (original VM).');
    const [{ vmid = 0 } = {}] = await lab().clonesOf(master, first);
    expect(await master.sh(`ping -c 1 -w 5 ${master.sibling(vmid).ip}`)).toContain('1 packets received');
    const cloned = await master.run(['sfclone', '2']);
    const second = ticketOf(cloned);
    expect(cloned).toBe(
      `Requested 2 clones, 2 allocations received.\nTicket is ${second}\nI am the master with 2 clones (original VM).`,
    );
    for (const ticket of [first, second])
      expect(await master.run(['sfmerge', ticket])).toBe(
        `Attempting to merge virtual cluster...\nSuccessful merge for ticket ${ticket}`,
      );
    await master.start(['sfshutdown']);
    await gone(lab());
  });

  it('the session of a Python interpreter runs as it stands', async () => {
    const master = await lab().seed(DEBIAN);
    await using python = await master.start(['python3', '-i', '-q', '-u']);
    const printed = async (lines: string): Promise<string> =>
      (await python.ask(lines)).replaceAll('>>> ', '');
    expect(
      await printed('import snowflock\n(ticket, allowed) = snowflock.request_vm_ticket(2)\nticket'),
    ).toMatch(new RegExp(`^'${UUID}'$`));
    expect(await printed('allowed')).toBe('2');
    // The manual prints (0, 2) here, but tells of (nclones, vmid) in section 5.
    expect(await printed('snowflock.clone_master(ticket)')).toBe('(2, 0)');
    await python.ask('snowflock.merge_master(ticket)\nsnowflock.shutdown_cluster()').catch(() => undefined); // the VM ends
    await gone(lab());
  });
});

describe.skipIf(!RUN)('manual, section 4', () => {
  const lab = sharedLab({ hosts: 2, cpus: 2, ramMib: 1024 });
  let master: Guest;

  it('sfdotix prints the ticket, and the number of clones granted, which may be less', async () => {
    master = await lab().seed(MICRO);
    const printed = await master.run(['sfdotix', '9']);
    expect(printed).toMatch(new RegExp(`^Requested 9 clones, 3 allocations received\\.\nTicket is ${UUID}$`));
    // "This ticket represents a reserved allocation of physical resources."
    expect((await master.exec(['sfdotix', '1'])).status).toBe(1);
  });

  it('sfdoclone finishes on each clone, with its vmid; sfclone says why it cannot', async () => {
    master = await lab().seed(MICRO);
    const ticket = /^Ticket is (\S+)$/m.exec(await master.run(['sfdotix', '3']))?.[1] ?? '';
    await master.sh(`sfdoclone ${ticket} > /run/said`);
    const clones = (await lab().clonesOf(master, ticket)).map(({ vmid }) => master.sibling(vmid));
    expect(clones.length).toBe(3);
    for (const clone of clones)
      expect(await clone.file('/run/said')).toBe(`I am clone ${clone.vmid} (cloned VM).`);
    expect(await master.file('/run/said')).toBe('I am the master with 3 clones (original VM).');
    expect(await master.exec(['sfclone', '1'])).toMatchObject({
      status: 1,
      err: "sfclone: no clones can be allocated now: the hosts' processors or memory are taken\n",
    });
  });

  it("sfmerge destroys the clones of the ticket, of all tickets if it is ''; sfshutdown does not proceed before", async () => {
    master = await lab().seed(MICRO);
    const vmids = async (): Promise<number[]> =>
      (await lab().state()).clusters.flatMap(({ vms }) => vms.map(({ vmid }) => vmid));
    const first = await lab().fork(master, 1);
    await lab().fork(master, 1);
    expect(await vmids()).toEqual([0, 1, 2]);
    await master.run(['sfmerge', first.ticket]);
    expect(await vmids()).toEqual([0, 2]);
    expect((await master.exec(['sfshutdown'])).err).toMatch(/^sfshutdown: tickets-outstanding: /);
    await master.run(['sfmerge', '']);
    expect(await vmids()).toEqual([0]);
    await master.start(['sfshutdown']);
    await gone(lab());
  });
});

const SECTION_5 = [
  'request_clone_ticket returns a tuple (ticket, allowed_clones)',
  'allowed_clones may be less than the number requested',
  'if min is >= 0, the reservation can be between min and nclones',
  'if block is false, the call returns immediately with what it can obtain, or nothing',
  'the default is VMs each with the same number of processors as the caller',
  'with procs, nclones is a number of processors, and no VM has more than the originating VM',
  'request_vm_ticket requests n VM clones',
  'request_proc_ticket requests n processor clones',
  'list_tickets tells unused and outstanding tickets apart',
  'clone_master returns (nclones, vmid), vmid 0 in the master and its own in each clone',
  'if cloning fails altogether, an exception is raised',
  'dispose_ticket relinquishes the resources, and the ticket cannot be used afterwards',
  'ic_exit is only callable by cloned VMs',
  'ic_join blocks until all clones have called ic_exit, and then they are destroyed',
  'ic_kill is synonymous with merge_master',
  'merge_master destroys all clones generated by the ticket',
  'merge_master(None) merges all outstanding tickets',
  'merge_all merges all clones from all active tickets',
  'shutdown_cluster will not proceed if there are outstanding tickets',
  'shutdown_cluster may only be called by a running master VM',
];
const SECTION_6 = [
  'REQUEST_CLONE_TICKET gives the number of allocations actually received, and the ticket',
  'REQUEST_CLONE_TICKET returns NULL on error',
  'REQUEST_VM_TICKET requests n VM clones',
  'REQUEST_PROC_TICKET requests n processor clones',
  'LIST_TICKETS shows all tickets in flight',
  'READ_TICKET_INFO gives (vmid, processors) of each clone, and the ticket',
  'DISPOSE_TICKET relinquishes the resources, and the ticket cannot be used afterwards',
  'CLONE_MASTER gives the number of clones started, and the vmid, different in each',
  'CLONE_MASTER returns NULL on error',
  'MERGE_MASTER returns 0 on success and non-zero on error',
  'MERGE_ALL merges all outstanding tickets',
  'IC_KILL returns 0 on success and non-zero on error',
  'IC_JOIN makes the master wait on slaves until they have exited',
  'IC_EXIT returns a non-zero value on error',
  'SHUTDOWN_CLUSTER is only permitted if there are no active clones',
];

/** One program says of every sentence whether it holds; the first test of a section runs it. */
describe.skipIf(!RUN).each([
  {
    section: 'manual, section 5: in Python',
    shape: { ...DEBIAN, vcpus: 2 },
    sentences: SECTION_5,
    put: (master: Guest) => master.put('/root/manual.py', readFileSync(PROGRAM)),
    argv: ['python3', '/root/manual.py'],
  },
  {
    section: 'manual, section 6: in C',
    shape: { ...MICRO, vcpus: 2 },
    sentences: SECTION_6,
    put: async (master: Guest) => master.put('/tmp/manual', await compileForGuest('manual')),
    argv: ['/tmp/manual'],
  },
])('$section', ({ shape, sentences, put, argv }) => {
  // The master VM takes two of eight processors: three clones of two fit.
  const lab = sharedLab({ hosts: 2, cpus: 4, ramMib: 2048 });
  const told = new Map<string, string>();

  async function run(): Promise<void> {
    const master = await lab().seed(shape);
    await put(master);
    await using program = await master.start(argv);
    for (let line = await program.line(); line !== 'end'; line = await program.line()) {
      const [, how = '', sentence = '', why = ''] = /^(ok|wrong) ([^:]+)(?:: (.*))?$/.exec(line) ?? [];
      told.set(sentence, how === 'ok' ? how : `${line} ${why}`);
    }
    await program.ask('').catch(() => undefined); // it shuts the cluster down, and itself with it
    await gone(lab());
  }

  it.each(sentences)('%s', async (sentence) => {
    if (told.size === 0) await run();
    expect(told.get(sentence)).toBe('ok');
    expect([...told.keys()]).toEqual(sentences);
  });
});
