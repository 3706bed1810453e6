// Clones that fetch everything in the background: from then on they need their parent's host no more.

import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { eventually } from './support/deadline.ts';
import type { Guest } from './support/guest.ts';
import { requireVm } from './require-vm.ts';
import { MICRO, sharedLab } from './support/test-lab.ts';

const RUN = requireVm();
/** 96 MiB of RAM and the disk, one page after the other, on a busy machine. */
const DETACHED_MS = 60_000;
const HERE = 1;
const REMOTE = 2;
const SUMS = 'echo 3 > /proc/sys/vm/drop_caches; md5sum < /run/blob; md5sum < /disk/blob';

describe.skipIf(!RUN)('clones that detach', () => {
  const lab = sharedLab({ hosts: 2, cpus: 4, ramMib: 1024, sfmdOptions: ["detach_clones = 'always'"] });

  /** A clone beside its parent and one on the other host. Neither has read what the sums are of. */
  async function forked(): Promise<{ master: Guest; near: Guest; far: Guest; ticket: string; sums: string }> {
    const master = await lab().seed(MICRO, { on: HERE });
    await master.sh('for each in /run/blob /disk/blob; do head -c 6000000 /dev/urandom > $each; done; sync');
    const sums = await master.sh(SUMS);
    const { ticket } = await lab().fork(master, 2);
    const on = async (k: number): Promise<Guest> => {
      const [record] = await lab().clonesOn(k, master.clusterid);
      if (!record) throw new Error(`no clone on host ${k}`);
      return master.sibling(record.vmid);
    };
    return { master, near: await on(HERE), far: await on(REMOTE), ticket, sums };
  }

  const detached = ({ clusterid }: Guest): Promise<void> =>
    eventually(DETACHED_MS, 'the clone to have all of its pages', async () => {
      expect(await lab().clonesOn(REMOTE, clusterid)).toMatchObject([{ detached: true }]);
    });

  const pagesOn = async (k: number): Promise<string> => {
    const vms = join(lab().lab.hosts[k - 1]?.dir ?? '', 'state/vms');
    return (await lab().lab.exec(k, ['find', vms, '-name', '*.pages'])).stdout;
  };

  it('outlive what they were forked from, byte for byte, also over restarts of sfld', async () => {
    const { master, near, far, ticket, sums } = await forked();
    // the next sfld begins anew
    await lab().killDaemon(REMOTE, 'sfld');
    await lab().lab.startDaemon(REMOTE, 'sfld');
    await lab().hostsUp();
    await detached(master);
    expect(await pagesOn(HERE)).toBe('');
    await lab().killOne(HERE, 'memserver/main.ts', ticket.slice(0, 8));
    expect(await lab().endOf(near, 'lost', 20_000)).toMatch(/memory can no longer be fetched/);
    await lab().killDaemon(REMOTE, 'sfld');
    await lab().lab.startDaemon(REMOTE, 'sfld');
    await lab().hostsUp();
    expect(await far.sh(SUMS)).toBe(sums);
    expect(await lab().vm(far)).toMatchObject({ status: 'running' });
    await detached(master);
    await master.run(['sfmerge', ticket]);
  });

  it('fork and are forked further, and what was copied goes with the last of them', async () => {
    const { master, far, sums } = await forked();
    await detached(master);
    expect(await pagesOn(REMOTE)).not.toBe('');
    const { clones } = await lab().fork(far, 2);
    await lab().killOne(HERE, 'memserver/main.ts', (await lab().vm(far))?.ticket?.slice(0, 8) ?? '');
    for (const clone of clones) expect(await clone.sh(SUMS)).toBe(sums);
    await far.run(['sfmerge', '']);
    await far.exec(['poweroff', '-f']).catch(() => undefined); // it goes before it answers
    await eventually(DETACHED_MS, 'the copy to be gone', async () => expect(await pagesOn(REMOTE)).toBe(''));
    await master.run(['sfmerge', '']);
  });
});
