// Reset: a clone is again what it was when clone_master returned in it, as often as one likes, and stays who it is.

import { readFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { describe, expect, it } from 'vitest';
import { eventually } from './support/deadline.ts';
import type { Guest } from './support/guest.ts';
import { MemoryTest } from './support/memtest.ts';
import { requireVm } from './require-vm.ts';
import { MICRO, sharedLab } from './support/test-lab.ts';

const RUN = requireVm();
const AREA_MIB = 16;
const ROUNDS = 2;
/** An agent that was held goes on by itself after 5 s. */
const LONGER_THAN_A_HOLD_MS = 5_500;

describe.skipIf(!RUN)('reset', () => {
  const lab = sharedLab({ hosts: 2, cpus: 6, ramMib: 2048 });

  const reset = (name: string): Promise<{ status: number | null; out: string; err: string }> =>
    lab().command('snowflock', ['reset', name]);

  async function expectReset(clone: Guest): Promise<void> {
    expect(await reset(clone.name)).toMatchObject({ status: 0, out: '', err: '' });
  }

  /** A reset of a clone that does nothing any more; resolves when its sfld is at it. */
  async function resetStopped(
    clone: Guest,
    k: number,
    pid: number,
  ): Promise<{ over: ReturnType<typeof reset> }> {
    const said = (): number =>
      readFileSync(lab().lab.logPath(k, 'sfld'), 'utf8').split('clone is reset').length;
    const before = said();
    process.kill(pid, 'SIGSTOP');
    const over = reset(clone.name);
    await eventually(20_000, 'the reset to begin', () => expect(said()).toBe(before + 1));
    return { over };
  }

  it('is had from inside: by the VM that forked the clone, and by the clone itself; nobody else', async () => {
    const master = await lab().seed();
    const { ticket, clones } = await lab().fork(master, 2);
    const [clone, other] = clones;
    if (!clone || !other) throw new Error('two clones were asked for');
    const isFresh = async (): Promise<void> =>
      eventually(LONGER_THAN_A_HOLD_MS, 'the clone to be at its fork point', async () => {
        expect(await clone.sh('cat /run/mark 2>/dev/null || echo none')).toBe('none');
      });
    await clone.sh('echo after >/run/mark');
    expect(await master.exec(['sfreset', String(clone.vmid)])).toEqual({ status: 0, out: '', err: '' });
    await isFresh();
    await clone.sh('echo after >/run/mark');
    // The command goes with what it was called in; it is called in the background, so that none from outside is cut off.
    await clone.sh(`sfreset ${clone.vmid} >/dev/null 2>&1 &`);
    await isFresh();
    const refused = async (by: Guest, vmid: number): Promise<string> => {
      const { status, err } = await by.exec(['sfreset', String(vmid)]);
      expect(status).toBe(1);
      return err;
    };
    expect(await refused(other, clone.vmid)).toMatch(/^sfreset: not-owner: /);
    expect(await refused(clone, 0)).toMatch(/^sfreset: not-owner: /);
    expect(await refused(master, 0)).toMatch(/^sfreset: not-clone: /);
    expect(await refused(master, 77)).toMatch(/^sfreset: no-such-vm: /);
    expect((await master.exec(['sfreset', '1x'])).status).toBe(2);
    await master.sh(`sfmerge ${ticket}`);
    expect(await refused(master, clone.vmid)).toMatch(/^sfreset: no-such-vm: /);
  });

  it('puts memory, disk and programs of a clone back; it keeps its name, and nobody else notices', async () => {
    const master = await lab().seed(MICRO, { on: 1 });
    await master.sh('echo before > /disk/file; sync');
    await using memory = await MemoryTest.start(lab(), master, { areaMib: AREA_MIB });
    const { ticket, clones } = await memory.fork(2);
    for (const clone of clones) await memory.expectRight(clone);
    const [clone, other] = clones;
    if (!clone || !other) throw new Error('two clones were asked for');
    await other.sh('echo own > /disk/file; echo own > /run/mark; sync');
    const drawn = new Set<string>();
    const uptime = async (): Promise<number> =>
      Number((await clone.run(['cat', '/proc/uptime'])).split(' ')[0]);
    await sleep(LONGER_THAN_A_HOLD_MS);
    const before = await uptime();
    for (let round = 0; round < ROUNDS; round++) {
      drawn.add(await clone.sh('head -c 16 /dev/urandom | md5sum'));
      await clone.sh('echo after > /disk/file; echo after > /run/mark; sync');
      await expectReset(clone);
      expect(await clone.sh('cat /disk/file; cat /run/mark 2>/dev/null || echo none')).toBe('before\nnone');
      expect(await clone.run(['hostname'])).toBe(`sf-${clone.clusterid}-${clone.vmid}`);
      // time goes back in it, too, and the time of day does not
      expect(await uptime()).toBeLessThan(before - 2);
      expect(Math.abs(Number(await clone.run(['date', '+%s'])) - Date.now() / 1000)).toBeLessThan(3);
      // its program has checked and rewritten all of its memory once more
      await memory.expectRight(clone);
    }
    drawn.add(await clone.sh('head -c 16 /dev/urandom | md5sum'));
    expect(drawn.size).toBe(ROUNDS + 1);
    expect(await other.sh('cat /disk/file /run/mark')).toBe('own\nown');
    for (const k of [1, 2]) await lab().killDaemon(k, 'sfld');
    for (const k of [1, 2]) await lab().lab.startDaemon(k, 'sfld');
    await lab().hostsUp();
    await clone.sh('echo after > /run/mark');
    await expectReset(clone);
    expect(await clone.sh('cat /run/mark 2>/dev/null || echo none')).toBe('none');
    expect((await master.exec(['sfmerge', ticket])).status).toBe(0);
  });

  it('goes on in the same QEMU, and in a new one where that cannot be; one that sfld is killed in loses the clone', async () => {
    const master = await lab().seed(MICRO, { on: 1 });
    const { ticket, clones } = await lab().fork(master, 1);
    const [clone] = clones;
    if (!clone) throw new Error('no clone');
    const k = await lab().hostOf(clone);
    const pid = async (): Promise<number> => (await lab().clonesOn(k, clone.clusterid))[0]?.pid ?? 0;
    const [before] = [await pid(), await expectReset(clone)];
    expect(await pid()).toBe(before);
    // its QEMU does nothing that it is told, and then is gone
    const replaced = await resetStopped(clone, k, before);
    process.kill(before, 'SIGKILL');
    expect(await replaced.over).toMatchObject({ status: 0, err: '' });
    const now = await pid();
    expect(now).not.toBe(before);
    expect(await clone.run(['hostname'])).toBe(`sf-${clone.clusterid}-${clone.vmid}`);
    const cut = await resetStopped(clone, k, now);
    await lab().killDaemon(k, 'sfld');
    await lab().lab.startDaemon(k, 'sfld');
    expect((await cut.over).status).toBe(1);
    expect(await lab().endOf(clone, 'lost', 30_000)).toMatch(/ended while it was being reset/);
    expect((await master.exec(['sfmerge', ticket])).status).toBe(0);
  });

  it('is refused where there is no fork point, and for a clone with tickets of its own', async () => {
    const master = await lab().seed();
    const { clones } = await lab().fork(master, 1);
    const [clone] = clones;
    if (!clone) throw new Error('no clone');
    const refused = async (name: string, why: RegExp): Promise<void> => {
      expect(await reset(name)).toMatchObject({ status: 1, err: expect.stringMatching(why) as string });
    };
    await refused(master.name, /is a master VM, which has no fork point/);
    await refused(`${master.clusterid}:77`, /there is no VM/);
    await clone.run(['sfdotix', '1']);
    await refused(clone.name, /has tickets of its own; merge or dispose of them first: /);
    await clone.run(['sfmerge', '']);
    await expectReset(clone);
    expect(await clone.run(['hostname'])).toBe(`sf-${clone.clusterid}-${clone.vmid}`);
  });
});
