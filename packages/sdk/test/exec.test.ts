import { randomBytes } from 'node:crypto';
import { PassThrough, Readable, Writable } from 'node:stream';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { ControlClient } from '@snowflock/protocol';
import { connectExec, execInVm, startExec } from '../src/index.ts';
import { startFakeSfld, type FakeSfld } from './fake-sfld.ts';

let fake: FakeSfld;
let client: ControlClient;
beforeEach(async () => {
  fake = await startFakeSfld();
  client = new ControlClient({ socketPath: fake.socketPath });
});
afterEach(async () => {
  client.close();
  expect(fake.violations).toEqual([]);
  await fake[Symbol.asyncDispose]();
});

class Sink extends Writable {
  bytes = 0;
  readonly #delayMs: number;
  constructor(delayMs = 0) {
    super({ highWaterMark: 1 });
    this.#delayMs = delayMs;
  }
  override _write(chunk: Buffer, _encoding: BufferEncoding, done: () => void): void {
    this.bytes += chunk.length;
    if (this.#delayMs > 0) setTimeout(done, this.#delayMs);
    else done();
  }
}

describe('exec', () => {
  it('passes input, both outputs and the exit status', async () => {
    const script = 'cat; echo problem >&2; exit 42';
    const result = await execInVm(client, '0:1', ['sh', '-c', script], { input: 'hello' });
    expect([result.status, result.stdout.toString(), result.stderr.toString()]).toEqual([
      42,
      'hello',
      'problem\n',
    ]);
    expect((await execInVm(client, '0:1', ['cat'])).stdout.length).toBe(0);
    expect((await execInVm(client, '0:1', ['echo', 'a b', '', "c'"])).stdout.toString()).toBe("a b  c'\n");
    expect((await execInVm(client, '0:1', ['sh', '-c', 'kill -TERM $$'])).status).toBe(143);
  });

  it('carries megabytes both ways within the granted windows', async () => {
    const input = randomBytes(5 << 20);
    const result = await execInVm(client, '0:1', ['cat'], { input });
    expect(result.stdout.equals(input)).toBe(true);
  });

  it('holds the command back while its reader is slow', async () => {
    const connection = await connectExec(client, '0:1');
    const stdout = new Sink(25);
    const argv = ['sh', '-c', 'dd if=/dev/zero bs=64k count=30 2>/dev/null; echo done >&2'];
    const stderr = new Sink();
    const { exited } = startExec(connection, { argv, stdin: null, stdout, stderr });
    await sleep(150);
    expect(stderr.bytes).toBe(0);
    expect(await exited).toBe(0);
    expect(stdout.bytes).toBe(30 << 16);
  });

  it('ends with the command although its input goes on, or is never read', async () => {
    fake.stuck = true;
    const endless = Readable.from(
      (async function* () {
        for (;;) yield await Promise.resolve(Buffer.alloc(30_000));
      })(),
    );
    const connection = await connectExec(client, '0:1');
    const options = { argv: ['sleep', '0.3'], stdin: endless, stdout: new Sink(), stderr: new Sink() };
    expect(await startExec(connection, options).exited).toBe(0);
    expect(endless.destroyed).toBe(true);
    const silent = new PassThrough();
    const second = await connectExec(client, '0:1');
    expect(await startExec(second, { ...options, stdin: silent }).exited).toBe(0);
  });

  it('forwards signals', async () => {
    const connection = await connectExec(client, '0:1');
    const options = { argv: ['sleep', '60'], stdin: null, stdout: new Sink(), stderr: new Sink() };
    const exec = startExec(connection, options);
    setTimeout(() => exec.kill(2), 100);
    expect(await exec.exited).toBe(130);
    expect(fake.signals).toEqual([2]);
  });

  it('detaches when told to', async () => {
    const abort = new AbortController();
    const connection = await connectExec(client, '0:1');
    const options = {
      argv: ['sleep', '60'],
      stdin: null,
      stdout: new Sink(),
      stderr: new Sink(),
      signal: abort.signal,
    };
    const exec = startExec(connection, options);
    setTimeout(() => abort.abort(), 50);
    await expect(exec.exited).rejects.toThrow(/detached/);
    expect(connection.destroyed).toBe(true);
  });

  it('says that the VM is gone when the connection ends first', async () => {
    const pending = execInVm(client, '0:1', ['sleep', '60']);
    setTimeout(() => fake.sockets.forEach((socket) => socket.destroy()), 100);
    await expect(pending).rejects.toThrow(/ended before the command did/);
  });

  it('says so, too, when what it had sent was not read', async () => {
    fake.deaf = true;
    const pending = execInVm(client, '0:1', ['sleep', '60'], { input: randomBytes(1 << 20) });
    setTimeout(() => fake.sockets.forEach((socket) => socket.destroy()), 300);
    await expect(pending).rejects.toThrow(/ended before the command did/);
  });

  it('waits for a guest that boots, for a bounded time', async () => {
    fake.booting = 2;
    expect((await execInVm(client, '0:1', ['true'])).status).toBe(0);
    fake.booting = 1000;
    await expect(execInVm(client, '0:1', ['true'], { waitMs: 400 })).rejects.toThrow(/guest agent/);
    fake.booting = 0;
  });

  it('refuses what cannot be sent', async () => {
    await expect(execInVm(client, '9:9', ['true'])).rejects.toThrow('there is no VM 9:9');
    await expect(execInVm(client, 'x', ['true'])).rejects.toThrow(/does not name a VM/);
    await expect(execInVm(client, '0:1', [''])).rejects.toThrow(/no command/);
    await expect(execInVm(client, '0:1', ['a\0b'])).rejects.toThrow(/NUL/);
    await expect(execInVm(client, '0:1', ['x'.repeat(70_000)])).rejects.toThrow(/longer than 65536/);
  });
});
