// What clones of one fork, or of one start of a checkpoint, needed is fetched ahead by those of the next.

import { describe, expect, it } from 'vitest';
import { eventually } from './support/deadline.ts';
import type { Guest } from './support/guest.ts';
import { SystemState } from '@snowflock/protocol';
import { requireVm } from './require-vm.ts';
import { getText } from './support/get-text.ts';
import { MICRO, sharedLab } from './support/test-lab.ts';

const RUN = requireVm();
const PUSHED_MS = 20_000;
const HERE = 1;
const REMOTE = 2;
const SUM = 'md5sum < /run/blob';

describe.skipIf(!RUN)('pages that other clones needed', () => {
  const lab = sharedLab({ hosts: 2, cpus: 4, ramMib: 1024 });

  /** By the memtaps of the other host, of all forks so far. */
  async function pushed(): Promise<number> {
    const text = await getText(lab().lab.hosts[REMOTE - 1]?.socketPath ?? '', '/metrics');
    return Number(/^snowflock_pushed_pages_total\{what="pushed"\} (\d+)$/m.exec(text)?.[1]);
  }

  const blob = (guest: Guest): Promise<string> =>
    guest.sh(`head -c 8000000 /dev/urandom > /run/blob; ${SUM}`);

  const pushedSince = (before: number): Promise<void> =>
    eventually(PUSHED_MS, 'pages to be pushed', async () => {
      expect(await pushed()).toBeGreaterThan(before + 1000);
    });

  /** The clone on the other host, which has nothing in common with its parent's. */
  async function forked(master: Guest): Promise<{ far: Guest; ticket: string }> {
    const { ticket } = await lab().fork(master, 2);
    const [record] = await lab().clonesOn(REMOTE, master.clusterid);
    if (!record) throw new Error('no clone on the other host');
    return { far: master.sibling(record.vmid), ticket };
  }

  it('come to the next fork of a VM before they are asked for, also while the earlier one runs', async () => {
    const master = await lab().seed(MICRO, { on: HERE });
    const sum = await blob(master);
    const first = await forked(master);
    expect(await first.far.sh(SUM)).toBe(sum);
    // and of each it is known what it fetched, and how long it waited
    const { status, out } = await lab().command('sfstate', ['--fetched', '--json']);
    expect(status).toBe(0);
    const vms = SystemState.parse(JSON.parse(out)).clusters.flatMap((cluster) => cluster.vms);
    const account = vms.find(({ host, vmid }) => host === 'host2' && vmid > 0)?.fetched;
    expect(account?.bytes).toBeGreaterThan(8_000_000);
    expect(account?.waits?.count).toBeGreaterThan(50);
    expect(account?.waits?.sumUs).toBeGreaterThan(account?.waits?.medianUs ?? NaN);
    // what changed is not to be found in the earlier fork's memtap
    await master.sh('cp /run/blob /run/other; cat /run/other > /run/blob; rm /run/other');
    const before = await pushed();
    const second = await forked(master);
    await pushedSince(before);
    expect(await second.far.sh(SUM)).toBe(sum);
    for (const { ticket } of [first, second]) await master.run(['sfmerge', ticket]);
    const over = await pushed();
    const third = await forked(master);
    await pushedSince(over);
    expect(await third.far.sh(SUM)).toBe(sum);
    await master.run(['sfmerge', third.ticket]);
    await lab().shutdown(master.clusterid);
  });

  it('come to the next VM that is started from a checkpoint', async () => {
    const master = await lab().seed(MICRO, { on: HERE });
    const sum = await blob(master);
    const made = await lab().command('snowflock', ['checkpoint', 'create', master.name, 'kept'], {
      deadlineMs: 60_000,
    });
    expect(made).toMatchObject({ status: 0 });
    await lab().shutdown(master.clusterid);
    for (const round of [1, 2]) {
      const before = await pushed();
      const again = await lab().seedFrom('kept', { on: REMOTE });
      if (round === 2) await pushedSince(before);
      expect(await again.sh(SUM)).toBe(sum);
      await lab().shutdown(again.clusterid);
    }
    expect(await lab().command('snowflock', ['checkpoint', 'delete', 'kept'])).toMatchObject({ status: 0 });
  });
});
