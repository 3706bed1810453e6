// Join brings results: clones exit with a status and bytes, and the VM that forked them gets the outcome of each, however it ended.

import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { encodeGuestFrame, GuestFrameType, HostState } from '@snowflock/protocol';
import { eventually, patient, timed } from './support/deadline.ts';
import { compileForGuest } from './support/guest-programs.ts';
import type { Guest } from './support/guest.ts';
import { requireVm } from './require-vm.ts';
import { TEST_DISK } from './support/leftovers.ts';
import { sharedLab } from './support/test-lab.ts';

const RUN = requireVm();
const PROGRAM = '/tmp/results';
const MIB = 1 << 20;
/** Of a join that waits for nobody; the guest runs under emulation on a busy machine. */
const JOIN_MS = 20_000;
const END_MS = 30_000;

describe.skipIf(!RUN)('results', () => {
  const lab = sharedLab({ hosts: 2, cpus: 5, ramMib: 2048 });
  let program: Buffer;
  beforeAll(async () => {
    program = await compileForGuest('results');
  });

  async function seed(): Promise<Guest> {
    const master = await lab().seed(undefined, { on: 1 });
    await master.put(PROGRAM, program);
    return master;
  }

  async function fork(master: Guest, ...hows: string[]): Promise<{ ticket: string; clones: Guest[] }> {
    const printed = await master.run([PROGRAM, 'fork', String(hows.length), ...hows], { deadlineMs: 60_000 });
    const ticket = /^ticket (\S+)$/.exec(printed)?.[1];
    if (ticket === undefined) throw new Error(printed);
    const clones = (await lab().clonesOf(master, ticket)).map(({ vmid }) => master.sibling(vmid));
    return { ticket, clones };
  }

  async function joined(master: Guest, ...args: string[]): Promise<string[]> {
    const { out } = await master.exec([PROGRAM, 'join', ...args], { deadlineMs: 60_000 });
    return out.trimEnd().split('\n');
  }

  /** Until sfmd knows of so many ends. */
  async function ends(master: Guest, count: number): Promise<void> {
    await eventually(END_MS, `${count} clones to have ended`, async () => {
      const cluster = (await lab().state()).clusters.find((each) => each.clusterid === master.clusterid);
      const ended = cluster?.vms.filter(({ status }) => status === 'exited' || status === 'lost') ?? [];
      expect(ended.length).toBe(count);
    });
  }

  const stored = (k: number): string[] =>
    readdirSync(join(lab().lab.hosts[k - 1]?.dir ?? '', 'state', 'results'), { recursive: true }).map(String);

  it('wait at the parent alone: what fed the clones goes when the last of a host has exited, so that no join waits for it', async () => {
    const master = await seed();
    const { ticket } = await fork(master, 'exit:0:100', 'exit:0:100', 'exit:0:100');
    await eventually(END_MS, 'no host to keep anything of the clones', async () => {
      for (const k of [1, 2]) {
        const { groups, sources } = await lab().get('/v1/state', HostState, k);
        expect({ groups, sources }).toEqual({ groups: [], sources: k === 1 ? [ticket] : [] });
      }
    });
    expect(await joined(master, ticket)).toEqual([1, 2, 3].map((k) => `${k} exited 0 100 right ic_exit`));
    expect((await lab().get('/v1/state', HostState, 1)).sources).toEqual([]);
  });

  it('tell of every clone how it ended and what it returned, and nothing of them is left', async () => {
    const master = await seed();
    const { ticket } = await fork(
      master,
      'exit:0:0',
      `exit:7:${MIB}`,
      'exit:-3:1',
      'stay',
      'off',
      'file:1:/proc/cpuinfo',
    );
    const victim = master.sibling(4);
    await victim.file('/run/results');
    const running = await lab().clonesOn(await lab().hostOf(victim), master.clusterid);
    process.kill(running.find(({ vmid }) => vmid === victim.vmid)?.pid ?? Number.NaN, 'SIGKILL');
    const lines = await joined(master, ticket);
    expect(lines.slice(0, 3)).toEqual([
      '1 exited 0 0 right ic_exit',
      `2 exited 7 ${MIB} right ic_exit`,
      '3 exited -3 1 right ic_exit',
    ]);
    expect(lines[3]).toMatch(/^4 lost -1 0 right \S/);
    expect(lines[4]).toMatch(/^5 ended -1 0 right \S/);
    expect(lines[5]).toMatch(/^6 exited 1 [1-9]\d+ wrong ic_exit$/);
    expect(await joined(master, ticket)).toEqual([expect.stringMatching(/^error ticket-used: .* merged/)]);
    expect(await lab().clonesOf(master, ticket)).toEqual([]);
    for (const k of [1, 2]) expect(stored(k)).toEqual([]);
  });

  it('of the first k, until a deadline, or within a budget: the rest are ended', async () => {
    const master = await seed();
    const first = await fork(master, 'exit:1:5', 'stay', 'exit:0:5', 'stay', 'stay');
    const k = await joined(master, first.ticket, '2');
    expect(k.map((line) => line.split(' ').slice(0, 5).join(' '))).toEqual([
      '1 exited 1 5 right',
      '2 ended -1 0 right',
      '3 exited 0 5 right',
      '4 ended -1 0 right',
      '5 ended -1 0 right',
    ]);
    expect(k[1]).toMatch(/ ended by a join: 2 of 5 clones have exited$/);
    const late = await fork(master, 'exit:0:3', 'stay');
    const { ms, value } = await timed(() => joined(master, late.ticket, '0', '3'));
    expect(ms).toBeGreaterThan(2900);
    expect(ms).toBeLessThan(patient(JOIN_MS));
    expect(value).toEqual([
      '6 exited 0 3 right ic_exit',
      expect.stringMatching(/^7 ended -1 0 right ended by a join: it has waited for 3(\.\d)? s$/),
    ]);
    const long = await fork(master, 'stay', 'stay');
    expect(await joined(master, long.ticket, '0', '0', '2')).toEqual(
      [8, 9].map(
        (vmid) =>
          expect.stringMatching(
            new RegExp(`^${vmid} ended .* have run for \\d+(\\.\\d)? s together$`),
          ) as string,
      ),
    );
    const much = await fork(master, 'exit:0:600', 'exit:0:600', 'stay');
    expect((await joined(master, much.ticket, '0', '0', '0', '1000'))[2]).toMatch(
      /^12 ended .* its clones have returned 1200 bytes of results$/,
    );
  });

  it('outlive both daemons, wait for a late joiner, and are there for several at once', async () => {
    const master = await seed();
    const { ticket, clones } = await fork(
      master,
      'exit:0:300000',
      'wait:2:300000',
      'wait:3:300000',
      'wait:4:0',
    );
    await ends(master, 1);
    for (const clone of clones.slice(1)) await clone.run(['true']); // where it is, is known then
    await lab().killDaemon(1, 'sfmd');
    for (const clone of clones.slice(1)) await clone.sh('(sleep 0.2; touch /run/go) >/dev/null 2>&1 &');
    await eventually(END_MS, 'the clones to be gone', async () => {
      const left = await Promise.all([1, 2].map((k) => lab().clonesOn(k, master.clusterid)));
      expect(left.flat()).toEqual([]);
    });
    // None of their hosts could say so yet.
    for (const k of [1, 2]) await lab().killDaemon(k, 'sfld');
    await lab().lab.startDaemon(1, 'sfmd');
    for (const k of [1, 2]) await lab().lab.startDaemon(k, 'sfld');
    await ends(master, 4);
    await eventually(END_MS, 'the master VM to answer', () => master.run(['true']));
    const said = (await master.run([PROGRAM, 'many', ticket], { deadlineMs: 60_000 })).split('\n');
    for (const line of said) expect(line).toMatch(/^(4 right|ticket-used: )/);
    expect(said).toContain('4 right');
    for (const k of [1, 2]) expect(stored(k)).toEqual([]);
  });

  it('that are too large, or that the parent has no room for, leave the clone running', async () => {
    const master = await seed();
    const { dir = '' } = lab().lab.hosts[0] ?? {};
    const disk = ['mount', '-t', 'tmpfs', '-o', 'size=256k', TEST_DISK, join(dir, 'state', 'results')];
    expect((await lab().lab.exec(1, disk)).status).toBe(0);
    try {
      const tooMuch = 16 * MIB + 1;
      const { ticket, clones } = await fork(master, `exit:0:${tooMuch}`, `exit:0:${MIB}`, `exit:0:${MIB}`);
      const told = await Promise.all(clones.map((clone) => clone.file('/run/results')));
      expect(told[0]).toMatch(
        /^result-too-large: 16777217 bytes are more than the 16777216 .* exit with less$/,
      );
      for (const one of told.slice(1))
        expect(one).toMatch(/^no-resources: host \S+ could not store .* no space left/);
      await Promise.all(
        clones.map((clone) => clone.exec(['sh', '-c', 'echo less | sfexit 5 -']).catch(() => undefined)),
      );
      expect((await joined(master, ticket)).map((line) => line.split(' ').slice(0, 4).join(' '))).toEqual(
        [1, 2, 3].map((vmid) => `${vmid} exited 5 5`),
      );
    } finally {
      await lab().lab.exec(1, ['umount', join(dir, 'state', 'results')]);
    }
  });

  it('refuse wrong arguments of every kind', async () => {
    const master = await seed();
    const said = (await master.run([PROGRAM, 'wrong'])).split('\n');
    const codes = said.map((line) => line.replace(/^(.*: [a-z-]+): .*$/, '$1'));
    expect(codes).toEqual([
      'exit in the master VM: not-clone',
      'exit with a result in the master VM: not-clone',
      'exit without data: bad-request',
      'exit with too much: result-too-large',
      'no such file: bad-request',
      'a directory: bad-request',
      'no file: bad-request',
      'no ticket: bad-request',
      'an empty ticket: bad-request',
      'two words: bad-request',
      'a line end: bad-request',
      'another ticket: no-such-ticket',
      'count -1: bad-request',
      'deadline -0.5: bad-request',
      'deadline NaN: bad-request',
      'budget_seconds 1e30: bad-request',
      'budget_bytes of 2^64: bad-request',
    ]);
    for (const args of [
      [],
      ['a', 'b'],
      ['--count', '0', 'a'],
      ['--deadline', 'soon', 'a'],
      ['--what', '1', 'a'],
      ['--results'],
    ])
      expect((await master.exec(['sfjoin', ...args])).status).toBe(2);
    for (const args of [['x'], ['1', '2', '3'], ['99999999999']])
      expect((await master.exec(['sfexit', ...args])).status).toBe(2);
  });

  it('of a hostile clone, that sends more than it announced, half, or for no call, harm only itself', async () => {
    const master = await seed();
    const { ticket, clones } = await fork(master, 'stay', 'wait:0:1000');
    const [enemy, other] = clones as [Guest, Guest];
    const frame = (type: 'call' | 'callData', id: number, payload: string): Buffer =>
      encodeGuestFrame({ type: GuestFrameType[type], id, payload });
    const frames = Buffer.concat([
      frame('callData', 1, 'of no call'),
      frame('call', 2, 'ic_exit 0 +4'),
      frame('callData', 2, 'more than four bytes'),
      frame('call', 3, 'ic_exit 0 +99999999999'),
      frame('call', 4, 'ic_exit 0 1 2 +1'),
      frame('callData', 4, '1'),
      frame('call', 5, `wait_clones ${ticket} - - - - +1`),
      frame('call', 6, 'ic_exit 0 +1000'),
      frame('callData', 6, 'half'),
      frame('callData', 7, 'of another call'),
    ]);
    await enemy.put('/tmp/frames', frames);
    const script = `killall -9 sfagent\ncat /tmp/frames >/dev/virtio-ports/snowflock\nsleep 100000 </dev/virtio-ports/snowflock`;
    await enemy
      .sh(`cat >/tmp/enemy <<'END'\n${script}\nEND\nsetsid sh /tmp/enemy >/dev/null 2>&1 </dev/null &`)
      .catch(() => undefined);
    await other.sh('touch /run/go').catch(() => undefined);
    await ends(master, 1);
    expect(await lab().vm(enemy)).toMatchObject({ status: 'running' });
    expect(await joined(master, ticket, '1')).toEqual([
      '1 ended -1 0 right ended by a join: 1 of 2 clones have exited',
      '2 exited 0 1000 right ic_exit',
    ]);
  });

  it('come to shells, too', async () => {
    const master = await seed();
    const script =
      'sfclone 2 >/run/out; if [ $(sed -n "s/^vmid=//p" /run/snowflock/identity) = 0 ]; then exit; fi; hostname | sfexit 4 -';
    await master.sh(script, { deadlineMs: 60_000 });
    const ticket = /^Ticket is (\S+)$/m.exec(await master.run(['cat', '/run/out']))?.[1] ?? '';
    const { status, out } = await master.exec(['sfjoin', '--results', '/run/results', ticket]);
    const [one, two] = [1, 2].map((vmid) => `sf-${master.clusterid}-${vmid}\n`) as [string, string];
    expect({ status, out }).toEqual({
      status: 3,
      out: `1 exited 4 ${one.length} ic_exit\n2 exited 4 ${two.length} ic_exit\n`,
    });
    expect(await master.sh('cat /run/results/1 /run/results/2')).toBe(`${one}${two}`.trimEnd());
  });
});
