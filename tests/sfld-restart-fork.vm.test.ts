// sfld killed in the middle of a fork, at moments that follow from a seed: the fork has happened or it has not, the caller is told
// which, the master VM goes on, and nothing of what was half done is left.

import { setTimeout as sleep } from 'node:timers/promises';
import { describe, expect, it } from 'vitest';
import { eventually } from './support/deadline.ts';
import type { Guest } from './support/guest.ts';
import { requireVm } from './require-vm.ts';
import { MICRO, sharedLab } from './support/test-lab.ts';

const RUN = requireVm();
const CALL_MS = 30_000;
const BACK_MS = 15_000;
/** The same seed, the same moments: SNOWFLOCK_TEST_SEED. */
const SEED = Number(process.env['SNOWFLOCK_TEST_SEED'] ?? 1);
/** The call comes so long after its guest was told to make it, or a little less: to say that it was told takes time too. */
const GUEST_WAITS_MS = 500;
/** From before the call to after the fork. */
const FIRST_MS = 350;
const FORK_MS = 800;
const MOMENTS = 8;

/** Evenly spread, each a little off, so that other seeds find other moments. */
function moments(seed: number): number[] {
  let state = seed;
  return Array.from({ length: MOMENTS }, (_, index) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.round(FIRST_MS + ((index + state / 2 ** 32) * FORK_MS) / MOMENTS);
  });
}

describe.skipIf(!RUN)(`sfld killed in the middle of a fork (seed ${SEED})`, () => {
  const lab = sharedLab({ hosts: 2, cpus: 6, ramMib: 2048 });

  async function ticketOf(master: Guest, count: number): Promise<string> {
    const ticket = /^Ticket is (\S+)$/m.exec(await master.run(['sfdotix', String(count)]))?.[1] ?? '';
    await lab().prepared(master, ticket);
    return ticket;
  }

  const clusterOf = async (master: Guest) =>
    (await lab().state()).clusters.find(({ clusterid }) => clusterid === master.clusterid);

  /** Calls clone_master in the background, a while after this returns. */
  async function forkInBackground(master: Guest, ticket: string): Promise<void> {
    const script = `rm -f /run/fork.*; (setsid sh -c 'sleep ${GUEST_WAITS_MS / 1000}; sfdoclone ${ticket} >/run/fork.out 2>&1; echo $? >/run/fork.status' >/dev/null 2>&1 &)`;
    await master.sh(script);
  }

  async function back(guest: Guest): Promise<void> {
    await eventually(BACK_MS, `VM ${guest.name} to answer`, async () => {
      expect(await guest.run(['hostname'], { deadlineMs: BACK_MS })).toBe(
        `sf-${guest.clusterid}-${guest.vmid}`,
      );
    });
  }

  /** What the caller was told, which is how things are. */
  async function expectConsistent(master: Guest, ticket: string): Promise<string> {
    const status = await master.file('/run/fork.status', CALL_MS);
    const said = await master.file('/run/fork.out');
    const [, count] = /^I am the master with (\d) clones/.exec(said) ?? [];
    if (count !== undefined) {
      expect(status).toBe('0');
      const clones = (await clusterOf(master))?.vms.filter((vm) => vm.vmid > 0) ?? [];
      const running = clones.filter((vm) => vm.status === 'running');
      expect(running.length, JSON.stringify(clones)).toBe(Number(count));
      for (const { vmid } of running) await back(master.sibling(vmid));
      await master.run(['sfmerge', ticket]);
    } else {
      expect(said).toMatch(/^sfdoclone: (interrupted|unavailable|fork-failed): /);
      const unused = await eventually(CALL_MS, 'the fork to be undone', async () => {
        const cluster = await clusterOf(master);
        expect(cluster?.tickets.filter((each) => each.status === 'outstanding')).toEqual([]);
        return cluster?.tickets.length === 1;
      });
      if (unused) {
        expect(await master.run(['sfdoclone', ticket])).toBe('I am the master with 4 clones (original VM).');
        await master.run(['sfmerge', ticket]);
      }
    }
    await eventually(CALL_MS, 'only the master VM', async () => {
      const cluster = await clusterOf(master);
      expect([cluster?.vms.length, cluster?.tickets]).toEqual([1, []]);
    });
    return said;
  }

  it.each([
    ["the master VM's", 1],
    ['a target', 2],
  ])('on %s host', async (_what, k) => {
    const master = await lab().seed(MICRO, { on: 1 });
    const told: string[] = [];
    for (const delayMs of moments(SEED)) {
      const ticket = await ticketOf(master, 4);
      await forkInBackground(master, ticket);
      await sleep(delayMs);
      await lab().killDaemon(k, 'sfld');
      await lab().lab.startDaemon(k, 'sfld');
      await back(master);
      told.push(`${delayMs} ms: ${await expectConsistent(master, ticket)}`);
    }
    console.log(told.join('\n'));
    const { clones, ticket } = await lab().fork(master, 4);
    expect(clones.length).toBe(4);
    for (const clone of clones) await back(clone);
    await master.run(['sfmerge', ticket]);
  });

  it('just after it: all clones are there', async () => {
    const master = await lab().seed(MICRO, { on: 1 });
    for (const k of [1, 2, 1, 1]) {
      const ticket = await ticketOf(master, 4);
      await master.run(['sfdoclone', ticket]);
      const clones = (await lab().clonesOf(master, ticket)).map(({ vmid }) => master.sibling(vmid));
      await lab().killDaemon(k, 'sfld');
      await lab().lab.startDaemon(k, 'sfld');
      await back(master);
      const vms = (await clusterOf(master))?.vms ?? [];
      expect(vms.filter((vm) => vm.status === 'running').length, JSON.stringify(vms)).toBe(5);
      for (const clone of clones) await back(clone);
      await master.run(['sfmerge', ticket]);
    }
  });
});
