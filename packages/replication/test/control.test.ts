import { mkdtempSync, rmSync } from 'node:fs';
import { createConnection } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeEach, describe, expect, it } from 'vitest';
import { SnowflockError } from '@snowflock/protocol';
import { ControlClient } from '../src/control/control-client.ts';
import { ControlServer } from '../src/control/control-server.ts';

describe('the control socket', () => {
  const directory = mkdtempSync(join(tmpdir(), 'snowflock-control-'));
  const path = join(directory, 'control');
  let server: ControlServer;
  const events: Record<string, unknown>[] = [];

  const connect = async (): Promise<ControlClient> =>
    ControlClient.connect({
      path,
      peer: 'memserver',
      timeoutMs: 1000,
      onEvent: (event) => events.push(event),
    });

  beforeEach(async () => {
    server = new ControlServer({
      path,
      handler: async (request) => {
        if (request['op'] === 'echo') return { text: request['text'] };
        if (request['op'] === 'hang') return new Promise(() => undefined);
        throw new SnowflockError('bad-request', `no op '${String(request['op'])}'`);
      },
    });
    await server.listen();
  });
  afterEach(async () => {
    await server.close();
    events.length = 0;
  });
  afterAll(() => rmSync(directory, { recursive: true, force: true }));

  it('answers each caller, errors with their code, and tells everyone of events', async () => {
    const [one, two] = await Promise.all([connect(), connect()]);
    const texts = await Promise.all(
      ['a', 'b'.repeat(300_000)].map((text, index) =>
        (index === 0 ? one : two).call('echo', { text }, { timeoutMs: 1000 }),
      ),
    );
    expect(texts.map((reply) => String(reply['text']).length)).toEqual([1, 300_000]);
    await expect(one.call('nonsense', {}, { timeoutMs: 1000 })).rejects.toMatchObject({
      code: 'bad-request',
    });
    await expect(one.call('hang', {}, { timeoutMs: 50 })).rejects.toMatchObject({ code: 'timeout' });
    server.broadcast({ event: 'source-lost', reason: 'test' });
    await one.call('echo', {}, { timeoutMs: 1000 });
    await two.call('echo', {}, { timeoutMs: 1000 });
    expect(events).toHaveLength(2);
    const hanging = expect(two.call('hang', {}, { timeoutMs: 1000 })).rejects.toMatchObject({
      code: 'unavailable',
    });
    two.close();
    await hanging;
    one.close();
  });

  it.each(['not json\n', '[1]\n', '{"op":"echo"}\n'])('drops a peer that sends %j', async (line) => {
    const socket = createConnection({ path });
    socket.write(line);
    await new Promise((resolve) => socket.once('close', resolve));
    expect(server.connectionCount).toBe(0);
  });
});
