import { describe, expect, it } from 'vitest';
import { EXEC_WINDOW_BYTES, GuestFrameType } from '@snowflock/protocol';
import { AgentBench, guestTools } from './agent-bench.ts';
import { testIdentity } from './host-side.ts';
import { haveTools } from './needs.ts';

const able = haveTools('gcc', 'make', 'python3');
const tools = guestTools({ able });
const start = (): Promise<AgentBench> => AgentBench.start(tools.directory, testIdentity());

describe.skipIf(!able)('exec', () => {
  it('runs a command with stdin, stdout, stderr and exit status', async () => {
    await using bench = await start();
    const result = await bench.host.exec(['sh', '-c', 'cat; echo problem >&2; exit 42'], 'hello\n');
    expect(result).toEqual({ status: 42, stdout: 'hello\n', stderr: 'problem\n' });
  });

  it('gives a plain environment', async () => {
    await using bench = await start();
    const { stdout } = await bench.host.exec(['/usr/bin/env']);
    expect(
      stdout
        .split('\n')
        .filter(Boolean)
        .map((line) => line.split('=')[0])
        .sort(),
    ).toEqual(['HOME', 'PATH', 'TERM']);
  });

  it('reports commands that cannot run', async () => {
    await using bench = await start();
    const missing = await bench.host.exec(['/no/such/program']);
    expect(missing.status).toBe(127);
    expect(missing.stderr).toContain('/no/such/program');
    expect((await bench.host.exec(['/etc/passwd'])).status).toBe(126);
    bench.host.send('execStart', 900, '');
    expect((await bench.host.finishExec(900)).status).toBe(127);
    bench.host.send('execStart', 901, 'not ended by NUL');
    expect((await bench.host.finishExec(901)).status).toBe(127);
  });

  it('signals the whole process group and reports 128 + signal', async () => {
    await using bench = await start();
    const id = bench.host.startExec(['sh', '-c', 'sleep 100 & echo on; wait']);
    await bench.host.next('execOut', 15_000, id);
    bench.host.send('execSignal', id, Buffer.from([15]));
    expect((await bench.host.finishExec(id)).status).toBe(143);
  });

  it('signals a command that has only just been started', async () => {
    await using bench = await start();
    for (let i = 0; i < 50; i++) {
      const id = bench.host.startExec(['sleep', '100']);
      bench.host.send('execSignal', id, Buffer.from([15]));
      expect((await bench.host.finishExec(id)).status).toBe(143);
    }
  });

  it('stops at the window until credit comes', async () => {
    await using bench = await start();
    const id = bench.host.startExec(['sh', '-c', 'head -c 1000000 /dev/zero']);
    await new Promise((resolve) => setTimeout(resolve, 500));
    let bytes = 0;
    while (bench.host.waiting('execOut') > 0)
      bytes += (await bench.host.next('execOut', 15_000, id)).payload.length - 1;
    expect(bytes).toBe(EXEC_WINDOW_BYTES);
    bench.host.grant(id, bytes);
    expect((await bench.host.finishExec(id)).stdout.length).toBe(1_000_000 - bytes);
  });

  it('passes much data through stdin, granting as the command reads', async () => {
    await using bench = await start();
    const total = 3_000_000;
    const id = bench.host.startExec(['sh', '-c', 'wc -c']);
    let window = EXEC_WINDOW_BYTES;
    for (let sent = 0; sent < total;) {
      while (window === 0)
        window += (await bench.host.next('execCredit', 15_000, id)).payload.readUInt32LE(0);
      const size = Math.min(window, 65_536, total - sent);
      bench.host.send('execIn', id, Buffer.alloc(size));
      sent += size;
      window -= size;
    }
    bench.host.send('execIn', id);
    expect((await bench.host.finishExec(id)).stdout.trim()).toBe(String(total));
  });

  it('lives with a command that does not read its stdin', async () => {
    await using bench = await start();
    const id = bench.host.startExec(['sh', '-c', 'exec <&-; sleep 0.3; echo done']);
    bench.host.send('execIn', id, Buffer.alloc(65_536));
    bench.host.send('execIn', id, Buffer.alloc(65_536));
    expect((await bench.host.finishExec(id)).stdout).toBe('done\n');
  });

  it('kills a command whose host ignores the stdin window', async () => {
    await using bench = await start();
    const id = bench.host.startExec(['sleep', '100']);
    for (let i = 0; i < 8; i++) bench.host.send('execIn', id, Buffer.alloc(65_536));
    expect((await bench.host.finishExec(id)).status).toBe(137);
  });

  it('runs 64 commands at once and refuses the next', async () => {
    await using bench = await start();
    const ids = Array.from({ length: 64 }, () => bench.host.startExec(['sh', '-c', 'read x; echo $x']));
    const refused = bench.host.startExec(['true']);
    expect((await bench.host.finishExec(refused)).status).toBe(126);
    for (const id of ids) {
      bench.host.send('execIn', id, `line ${id}\n`);
      bench.host.send('execIn', id);
      expect((await bench.host.finishExec(id)).stdout).toBe(`line ${id}\n`);
    }
  });

  it('sends the exit after the end of both streams', async () => {
    await using bench = await start();
    const id = bench.host.startExec(['sh', '-c', '(sleep 0.3; echo late) & exit 5']);
    const types: number[] = [];
    for (const name of ['execOut', 'execOut', 'execOut', 'execExit'] as const)
      types.push((await bench.host.next(name, 15_000, id)).type);
    expect(types.at(-1)).toBe(GuestFrameType.execExit);
    expect(bench.host.waiting('execOut')).toBe(0);
  });

  it('ignores frames for sessions that do not exist', async () => {
    await using bench = await start();
    bench.host.send('execIn', 77, 'x');
    bench.host.send('execSignal', 77, Buffer.from([9]));
    bench.host.grant(77, 5);
    expect((await bench.host.exec(['true'])).status).toBe(0);
  });
});
