// snowflock doctor on a lab: what it says of hosts that reach one another, and of a firewall between them.

import { describe, expect, it } from 'vitest';
import { requireVm } from './require-vm.ts';
import { MICRO, sharedLab } from './support/test-lab.ts';

const RUN = requireVm();
const DOCTOR_MS = 90_000;

interface Check {
  readonly name: string;
  readonly status: string;
  readonly found: string;
  readonly advice: string;
}

describe.skipIf(!RUN)('snowflock doctor', () => {
  const lab = sharedLab({ hosts: 2, cpus: 2, ramMib: 512 });

  async function serviceChecks(): Promise<Check[]> {
    const { out } = await lab().command('snowflock', ['doctor', '--json', '--config-dir', '/none'], {
      deadlineMs: DOCTOR_MS,
    });
    const { checks } = JSON.parse(out) as { checks: Check[] };
    return checks.slice(checks.findIndex(({ name }) => name === 'hosts'));
  }

  /** Host `k` drops what comes in and is so. */
  const filter = (k: number, what: string): Promise<unknown> => {
    const chain = 'add chain inet d i { type filter hook input priority 0; }';
    return lab().lab.exec(k, ['nft', `add table inet d; ${chain}; add rule inet d i ${what} drop`]);
  };

  it('finds every way open, and names each that a firewall closes', async () => {
    const [hosts, clocks] = await serviceChecks();
    // from each of two hosts: to sfmd; to the other's sfld, a free port, VXLAN
    expect(hosts).toMatchObject({ status: 'ok', found: '8 of 8 ways between hosts and daemons work' });
    expect(clocks).toMatchObject({ name: 'clocks', status: 'ok' });
    await filter(2, 'udp dport 4789');
    await filter(2, 'tcp dport != 49183 ct state new');
    const closed = await serviceChecks();
    expect(
      closed
        .filter(({ status }) => status === 'fail')
        .map(({ name }) => name)
        .sort(),
    ).toEqual(['host1 → host2 pages', 'host1 → host2 vxlan']);
    await lab().lab.exec(2, ['nft', 'delete table inet d']);
  });

  it('does not mistake the network of a running cluster for a firewall', async () => {
    await lab().seed(MICRO, { on: 2 });
    const [hosts, ...rest] = await serviceChecks();
    expect(hosts?.found).toBe(
      '7 of 8 ways between hosts and daemons work, 1 could not be tried (VMs use it at this moment)',
    );
    expect(rest.filter(({ status }) => status === 'fail')).toEqual([]);
  });
});
