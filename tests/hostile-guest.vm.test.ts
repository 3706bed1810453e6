// A guest whose root is an enemy: it floods its channel, sends half a message, claims what is another cluster's. It may harm
// itself; every other VM, the daemons and the other clusters go on as if nothing was.

import { readFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { describe, expect, it } from 'vitest';
import { encodeGuestFrame, GuestFrameType } from '@snowflock/protocol';
import { eventually, patient, timed } from './support/deadline.ts';
import type { Guest } from './support/guest.ts';
import { requireVm } from './require-vm.ts';
import { MICRO, sharedLab } from './support/test-lab.ts';

const RUN = requireVm();
const PORT = '/dev/virtio-ports/snowflock';
const CALLS = 4096;
const FLOOD_MS = 8000;
/** Of an sfld that is flooded and runs its first fork, and of one that is flooded on: its buffers are bounded. */
const GROWTH_MAX_BYTES = 512 << 20;
const LEAK_MAX_BYTES = 64 << 20;
const LOOK_MS = 500;
const TAKEN_MS = 30_000;
/** What a command in a VM of another cluster may take meanwhile: the flooding guest has a CPU of its own. */
const OTHERS_MS = 20_000;

/** Takes the agent's place at the port; the script that runs it dies with the agent, this does not. */
const inAgentsPlace = (script: string): string =>
  `cat > /tmp/enemy <<'END'\nkillall -9 sfagent\n${script}\nEND\nsetsid sh /tmp/enemy >/dev/null 2>&1 </dev/null &`;

function rssBytes(pid: number): number {
  return Number(/^VmRSS:\s+(\d+) kB/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]) * 1024;
}

describe.skipIf(!RUN)('a hostile guest', () => {
  const lab = sharedLab({ hosts: 2, cpus: 6, ramMib: 2048 });

  /** Another cluster, with a VM on the same host, does all that it could do before. */
  async function expectWell(other: Guest): Promise<void> {
    const { ms } = await timed(() => other.run(['hostname'], { deadlineMs: OTHERS_MS }));
    expect(ms).toBeLessThan(patient(OTHERS_MS));
    const { ticket, clones } = await lab().fork(other, 2);
    expect(clones.length).toBe(2);
    for (const clone of clones)
      expect(await clone.run(['hostname'])).toBe(`sf-${clone.clusterid}-${clone.vmid}`);
    await other.run(['sfmerge', ticket]);
  }

  /** The enemy has taken the port from its agent: no command runs in it any more. */
  async function expectUnreachable(enemy: Guest): Promise<void> {
    await eventually(TAKEN_MS, `VM ${enemy.name} to have no agent`, async () => {
      const error: unknown = await enemy
        .exec(['true'], { deadlineMs: 3000 })
        .catch((thrown: unknown) => thrown);
      expect(error).toBeInstanceOf(Error);
    });
  }

  it('that floods its channel with calls and reads no answer', async () => {
    const enemy = await lab().seed(MICRO, { on: 1 });
    const other = await lab().seed(MICRO, { on: 1 });
    const daemons = { sfld: lab().lab.daemonPid(1, 'sfld'), sfmd: lab().lab.daemonPid(1, 'sfmd') };
    const { sfld = 0 } = daemons;
    const calls = Array.from({ length: CALLS }, (_, id) =>
      encodeGuestFrame({ type: GuestFrameType.call, id, payload: 'list_tickets' }),
    );
    await enemy.put('/tmp/calls', Buffer.concat(calls));
    const before = rssBytes(sfld);
    // an agent that init has started again may have taken the port first
    const flood = `while :; do cat /tmp/calls >${PORT} && touch /run/flooded || killall -9 sfagent; done`;
    await enemy.sh(inAgentsPlace(flood)).catch(() => undefined); // the agent that runs it is killed
    await expectUnreachable(enemy);
    await expectWell(other);
    const flooded = rssBytes(sfld);
    expect(flooded - before).toBeLessThan(GROWTH_MAX_BYTES);
    const until = performance.now() + FLOOD_MS;
    while (performance.now() < until) {
      expect((await timed(() => lab().state())).ms).toBeLessThan(patient(5000));
      expect(rssBytes(sfld) - flooded).toBeLessThan(LEAK_MAX_BYTES);
      await sleep(LOOK_MS);
    }
    await expectWell(other);
    expect({ sfld: lab().lab.daemonPid(1, 'sfld'), sfmd: lab().lab.daemonPid(1, 'sfmd') }).toEqual(daemons);
    expect(await lab().vm(enemy)).toMatchObject({ status: 'running' });
  });

  it('that sends half a message and then nothing', async () => {
    const enemy = await lab().seed(MICRO, { on: 1 });
    const other = await lab().seed(MICRO, { on: 1 });
    // the length of a call of 12 bytes, its type, and one byte more
    const half = `( printf '\\024\\000\\000\\000\\002\\000'; sleep 100000 ) >${PORT}`;
    await enemy.sh(inAgentsPlace(`until ${half}; do killall -9 sfagent; done`)).catch(() => undefined);
    await expectUnreachable(enemy);
    await expectWell(other);
    expect(await lab().vm(enemy)).toMatchObject({ status: 'running' });
    // Its owner gets rid of it like of any other.
    await lab().shutdown(enemy.clusterid);
    expect((await lab().state()).clusters.map(({ clusterid }) => clusterid)).toEqual([other.clusterid]);
  });

  it('that claims the ticket of another cluster', async () => {
    const [enemy, other] = [await lab().seed(), await lab().seed()];
    const ticketOf = async (vm: Guest): Promise<string> =>
      /^Ticket is (\S+)$/m.exec(await vm.run(['sfdotix', '1']))?.[1] ?? '';
    const { clones } = await lab().fork(enemy, 1);
    const unused = await ticketOf(other);
    for (const vm of [enemy, ...clones])
      for (const command of ['sfdoclone', 'sfmerge']) {
        const { status, err } = await vm.exec([command, unused]);
        expect(status).not.toBe(0);
        expect(err).toMatch(/no-such-ticket/);
      }
    expect(await lab().clonesOf(other, unused)).toHaveLength(1);
    expect(await other.run(['sfdoclone', unused])).toBe('I am the master with 1 clones (original VM).');
    // Nor an outstanding one.
    const { err } = await enemy.exec(['sfmerge', unused]);
    expect(err).toContain('no-such-ticket');
    const [clone] = await lab().clonesOf(other, unused);
    expect(await lab().vm(other.sibling(clone?.vmid ?? 0))).toMatchObject({ status: 'running' });
    await other.run(['sfmerge', unused]);
  });
});
