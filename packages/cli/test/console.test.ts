import { PassThrough } from 'node:stream';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { ControlClient } from '@snowflock/protocol';
import { startFakeSfld, type FakeSfld } from '../../sdk/test/fake-sfld.ts';
import { joinConsole } from '../src/commands/console.ts';

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

describe('console', () => {
  const join = async (input: PassThrough & { isTTY?: boolean; setRawMode?: (raw: boolean) => void }) => {
    const connection = await client.upgrade({
      path: '/v1/vms/0:0/console',
      protocol: 'snowflock-console',
      timeoutMs: 1000,
    });
    const output = new PassThrough();
    const ended = joinConsole(connection, { input, output });
    return { ended, output, connection };
  };

  it('leaves at Ctrl-] on a terminal, and restores it', async () => {
    const modes: boolean[] = [];
    const input = Object.assign(new PassThrough(), {
      isTTY: true,
      setRawMode: (raw: boolean) => void modes.push(raw),
    });
    const { ended, output } = await join(input);
    input.write('hello');
    await new Promise((resolve) => output.once('data', resolve));
    input.write('x\x1dy');
    expect(await ended).toBe('escape');
    expect(modes).toEqual([true, false]);
  });

  it('takes input from a pipe, Ctrl-] and all, and leaves when it is answered', async () => {
    const input = new PassThrough();
    const { ended, output } = await join(input);
    input.end('a\x1db');
    expect(await ended).toBe('input-ended');
    expect((output.read() as Buffer).toString()).toBe('A\x1dB');
  });

  it('ends when the VM does', async () => {
    const { ended } = await join(new PassThrough());
    fake.sockets.forEach((socket) => socket.destroy());
    expect(await ended).toBe('closed');
  });
});
