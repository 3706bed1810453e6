// The Python module in a Debian guest: the session of the manual, with the shapes that it shows.

import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { eventually } from './support/deadline.ts';
import { requireVm } from './require-vm.ts';
import { sharedLab } from './support/test-lab.ts';

const RUN = requireVm();
const SESSION = join(import.meta.dirname, 'support/guest/session.py');
const SHUTDOWN_MS = 45_000;

describe.skipIf(!RUN)('import snowflock', () => {
  const lab = sharedLab({ hosts: 2, cpus: 2, ramMib: 1024 });

  it('does what the manual shows, in a Debian guest', async () => {
    const master = await lab().seed({ diskImage: 'debian', vcpus: 1, memoryMib: 192 });
    await master.put('/root/session.py', readFileSync(SESSION));
    await using session = await master.start(['python3', '/root/session.py']);
    const expectLines = async (lines: readonly string[]): Promise<void> => {
      for (const line of lines) expect(await session.line()).toBe(line);
    };
    await expectLines([
      'request_vm_ticket (36, 2)',
      "list_tickets {'unused': 1, 'outstanding': 0}",
      'read_ticket_info [(1, 1), (2, 1)]',
      'clone_master (2, 0)',
      "list_tickets {'unused': 0, 'outstanding': 1}",
    ]);
    for (const vmid of [1, 2])
      expect(await master.sibling(vmid).file('/run/session')).toBe(
        `(2, ${vmid}) sf-${master.clusterid}-${vmid} ${vmid} not-owner`,
      );
    expect(await session.ask('')).toBe('merge_master None');
    const end = ["shutdown_cluster 'tickets-outstanding'", 'end None'];
    await expectLines([
      "clone_master again 'ticket-used'",
      'request_clone_ticket 3',
      'nothing left (None, 0)',
      'dispose_ticket None',
      "clone_master 'ticket-disposed'",
      'ic_join None',
      "ic_exit 'not-clone'",
      ...Array.from({ length: 7 }, () => "join refused 'bad-request'"),
      "outcome (0, True, 'exited', True, 'ic_exit', True)",
      "outcome (1, True, 'exited', True, 'ic_exit', True)",
      "join again 'ticket-used'",
      ...end,
      ...end,
      ...end,
      "list_tickets {'unused': [], 'outstanding': []}",
    ]);
    await eventually(SHUTDOWN_MS, 'the cluster to be gone', async () => {
      expect((await lab().state()).clusters).toEqual([]);
    });
    await lab().expectIdle();
  });
});
