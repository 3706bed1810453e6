// Commands of `snowflock exec` whose VM migrates, and its console: their clients see a pause, and every byte once.

import { once } from 'node:events';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Duplex } from 'node:stream';
import { PassThrough, Readable } from 'node:stream';
import { buffer } from 'node:stream/consumers';
import { afterEach, describe, expect, it } from 'vitest';
import { MigrateReply } from '@snowflock/protocol';
import { connectExec, startExec } from '@snowflock/sdk';
import { eventually, patient, within } from './support/deadline.ts';
import type { Guest } from './support/guest.ts';
import { requireVm } from './require-vm.ts';
import { MICRO, sharedLab } from './support/test-lab.ts';

const RUN = requireVm();
const COMMAND_MS = 60_000;
const CONNECT_MS = 30_000;
const FETCH_MS = 60_000;
/** What a client whose way is cut must have seen by then. */
const CUT_MS = 10_000;
const CUT = /the connection ended before the command did/;
/** Lines of the input are numbered, and long, so that a byte that is lost or doubled anywhere shows. */
const LINE_BYTES = 100;
const LINES_AT_ONCE = 40;

/** Echoes its input as fast as it comes, and numbers lines on its standard error meanwhile; ends with its input. */
const BOTH_WAYS =
  'echo started >&2; (i=0; while [ ! -e /run/done ]; do i=$((i+1)); echo $i; usleep 2000; done >&2) & cat; : > /run/done; wait; exit 7';

/** On the console: numbers lines, and answers each that is typed, until that is `end`. */
const CONSOLE_SCRIPT =
  '(i=0; while [ ! -e /run/end ]; do i=$((i+1)); echo n$i; usleep 10000; done) & while read l; do [ $l = end ] && break; echo a$l; done; : > /run/end; wait; echo o""ver\n';
const TYPE_MS = 50;
/** Both hosts prepare, then the VM goes: on an idle machine 0.7 s. */
const KILLS = [
  { side: 'to', afterMs: 600 },
  { side: 'from', afterMs: 900 },
] as const;

describe.skipIf(!RUN)('a command whose VM migrates', () => {
  const lab = sharedLab({ hosts: 3, cpus: 4, ramMib: 1024 });
  const running: Disposable[] = [];
  afterEach(() => {
    for (const each of running.splice(0)) each[Symbol.dispose]();
  });

  const nameOf = (k: number): string => lab().lab.hosts[k - 1]?.name ?? '';

  /** As soon as its memory has come after it from where it was last. */
  async function migrate(vm: Guest, k: number): Promise<void> {
    await eventually(FETCH_MS, `VM ${vm.name} to migrate`, async () => {
      const printed = await lab().command('snowflock', ['migrate', vm.name, nameOf(k)]);
      expect(printed).toMatchObject({ status: 0, err: '' });
    });
    expect(await lab().hostOf(vm)).toBe(k);
  }

  /** The command, by way of the sfld of host `via`; it has printed its first line. */
  async function start(vm: Guest, script: string, { via, stdin }: { via: number; stdin: Readable | null }) {
    const connection = await connectExec(lab().lab.client(via), vm.name, { waitMs: CONNECT_MS });
    const [stdout, stderr] = [new PassThrough(), new PassThrough()];
    const started = new Promise<void>((resolve) => stderr.once('data', () => resolve()));
    const [out, err] = [buffer(stdout), buffer(stderr)];
    const detach = new AbortController();
    running.push({ [Symbol.dispose]: () => detach.abort() });
    const { exited, kill } = startExec(connection, {
      ...{ argv: ['sh', '-c', script], stdin, stdout, stderr, signal: detach.signal },
    });
    const ended = exited.finally(() => {
      stdout.end();
      stderr.end();
    });
    ended.catch(() => undefined); // awaited by the tests
    await within(COMMAND_MS, 'the first line of the command', Promise.race([started, ended]));
    const all = async (): Promise<{ status: number; out: string; err: string }> => {
      const status = await within(COMMAND_MS, 'the end of the command', ended);
      return { status, out: (await out).toString(), err: (await err).toString() };
    };
    return { ended, kill, all };
  }

  function openConsole(vm: Guest, via: number): Promise<Duplex> {
    const path = `/v1/vms/${vm.name}/console`;
    return lab().lab.client(via).upgrade({ path, protocol: 'snowflock-console', timeoutMs: CONNECT_MS });
  }

  /** Numbered lines, as many as are taken until it is told to end. */
  function numbers(): { readonly stdin: Readable; readonly end: () => void; readonly sent: () => string } {
    const sent: string[] = [];
    let isOver = false;
    function* lines(): Generator<Buffer> {
      while (!isOver) {
        const first = sent.length * LINES_AT_ONCE;
        const chunk = Array.from(
          { length: LINES_AT_ONCE },
          (_, i) => `${first + i} `.padEnd(LINE_BYTES - 1, '.') + '\n',
        ).join('');
        sent.push(chunk);
        yield Buffer.from(chunk);
      }
    }
    const stdin = Readable.from(lines(), { objectMode: false });
    return { stdin, end: () => (isOver = true), sent: () => sent.join('') };
  }

  function expectNumbered(text: string): number {
    const lines = text.trimEnd().split('\n');
    expect(lines.findIndex((line, i) => line !== String(i + 1))).toBe(-1);
    return lines.length;
  }

  it('goes on for its clients, byte for byte: there, back, and by way of a third host', async () => {
    const vm = await lab().seed(MICRO, { on: 1 });
    const input = numbers();
    const near = await start(vm, BOTH_WAYS, { via: 1, stdin: input.stdin });
    // Waits for its only line of input all the while, and ends by a signal that comes after it.
    const late = new PassThrough();
    const far = await start(vm, 'echo ready >&2; read a; echo "$a"; read b', { via: 3, stdin: late });
    for (const k of [2, 1, 3]) await migrate(vm, k);
    late.write('after three migrations\n');
    const other = await start(vm, 'echo x >&2; cat', { via: 2, stdin: Readable.from(['new\n']) });
    expect(await other.all()).toMatchObject({ status: 0, out: 'new\n' });
    input.end();
    const { status, out, err } = await near.all();
    expect(status).toBe(7);
    expect(out === input.sent()).toBe(true);
    expect(out.length).toBeGreaterThan(2 ** 20);
    expect(expectNumbered(err.replace(/^started\n/, ''))).toBeGreaterThan(100);
    far.kill(15);
    expect(await far.all()).toEqual({ status: 128 + 15, out: 'after three migrations\n', err: 'ready\n' });
  });

  it('has a console whose clients lose nothing either', async () => {
    const vm = await lab().seed(MICRO, { on: 1 });
    const terminal = await openConsole(vm, 3);
    running.push({ [Symbol.dispose]: () => terminal.destroy() });
    let text = '';
    terminal.on('data', (chunk: Buffer) => (text += chunk.toString('latin1')));
    const shows = (what: string): Promise<void> =>
      eventually(COMMAND_MS, `'${what}' on the console`, () => expect(text).toContain(what));
    terminal.write('stty -echo; echo re""ady\n');
    await shows('ready\r\n');
    text = '';
    terminal.write(CONSOLE_SCRIPT);
    await shows('n10\r\n');
    let typed = 0;
    const typing = setInterval(() => terminal.write(`${++typed}\n`), TYPE_MS);
    for (const k of [2, 1]) await migrate(vm, k);
    clearInterval(typing);
    await sleep(TYPE_MS);
    terminal.write('end\n');
    await shows('over\r\n');
    const lines = text.split('\r\n');
    const [numbered, answers] = ['n', 'a'].map((mark) => lines.filter((line) => line.startsWith(mark)));
    expect(answers).toEqual(Array.from({ length: typed }, (_, i) => `a${i + 1}`));
    expect(numbered?.length).toBeGreaterThan(100);
    expect(numbered).toEqual(numbered?.map((_, i) => `n${i + 1}`));
  });

  it('is cut off with an error when a host that its bytes go by is killed', async () => {
    const vm = await lab().seed(MICRO, { on: 2 });
    for (const [from, to, killed] of [
      [2, 3, 2],
      [3, 2, 2],
    ] as const) {
      const mark = `/run/hup-${killed}-${from}`;
      const script = `trap 'echo hup > ${mark}; exit 1' HUP; echo started >&2; while :; do usleep 50000; done`;
      const command = await start(vm, script, { via: 1, stdin: null });
      const terminal = await openConsole(vm, 1);
      const closed = once(terminal.resume(), 'close');
      await migrate(vm, to);
      await lab().killDaemon(killed, 'sfld');
      await expect(within(CUT_MS, 'the error', command.ended)).rejects.toThrow(CUT);
      await within(CUT_MS, 'the end of the console', closed);
      await lab().lab.startDaemon(killed, 'sfld');
      await lab().hostsUp();
      // Where its sfld is there still, the command hears of it as when any client goes.
      if (killed === from) expect(await vm.file(mark)).toBe('hup');
    }
  });

  it('never hangs when an sfld is killed in the middle', async () => {
    const vm = await lab().seed(MICRO, { on: 2 });
    for (const { side, afterMs } of KILLS) {
      const from = await lab().hostOf(vm);
      const to = from === 2 ? 3 : 2;
      const input = new PassThrough();
      const command = await start(vm, 'echo started >&2; cat', { via: 1, stdin: input });
      input.write('before\n');
      const migrated = lab()
        .lab.client(1)
        .request({
          ...{ method: 'POST', path: `/v1/master/clusters/${vm.clusterid}/vms/${vm.vmid}/migrate` },
          ...{ body: { host: nameOf(to) }, reply: MigrateReply, timeoutMs: patient(FETCH_MS) },
        })
        .catch(() => undefined); // whether it has moved is not what this is about
      await sleep(afterMs);
      const killed = side === 'from' ? from : to;
      await lab().killDaemon(killed, 'sfld');
      await lab().lab.startDaemon(killed, 'sfld');
      await lab().hostsUp();
      await migrated;
      input.end('after\n');
      // The VM has stayed, and the command with its client; or it has gone, or its own sfld has.
      const how = await command.all().catch((error: unknown) => String(error));
      if (typeof how === 'string') expect(how).toMatch(CUT);
      else expect(how).toEqual({ status: 0, out: 'before\nafter\n', err: 'started\n' });
      await eventually(FETCH_MS, 'one host to have it', async () => {
        expect(await vm.run(['hostname'])).toBe(`sf-${vm.clusterid}-0`);
      });
    }
  });
});
