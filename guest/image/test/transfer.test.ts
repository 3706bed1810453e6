// Bytes behind calls and replies: the agent between a program and a played host.

import { randomBytes } from 'node:crypto';
import { connect, type Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { describe, expect, it } from 'vitest';
import { CALL_WINDOW_BYTES, GUEST_PAYLOAD_MAX } from '@snowflock/protocol';
import { AgentBench, guestTools } from './agent-bench.ts';
import { testIdentity } from './host-side.ts';
import { haveTools } from './needs.ts';

const able = haveTools('gcc', 'make', 'python3');
const tools = guestTools({ able });
const T = '11111111-2222-3333-4444-555555555555';
const QUIET_MS = 200;
const start = (): Promise<AgentBench> => AgentBench.start(tools.directory, testIdentity());

/** A program that reads as slowly as it likes. */
class RawClient {
  readonly socket: Socket;
  received = Buffer.alloc(0);
  ended = false;

  constructor(bench: AgentBench) {
    this.socket = connect(bench.socketPath);
    this.socket.on('data', (chunk: Buffer) => (this.received = Buffer.concat([this.received, chunk])));
    this.socket.on('error', () => (this.ended = true));
    this.socket.on('close', () => (this.ended = true));
  }

  async until(what: string, holds: () => boolean, deadlineMs = 15_000): Promise<void> {
    for (const end = Date.now() + deadlineMs; !holds(); await sleep(10))
      if (Date.now() > end) throw new Error(`${what}: not within ${deadlineMs} ms`);
  }
}

describe.skipIf(!able)('the bytes of a call', () => {
  it('reach the host as they were, in frames, and what follows them is the next call', async () => {
    await using bench = await start();
    const result = randomBytes(3 * CALL_WINDOW_BYTES + 1234);
    const client = new RawClient(bench);
    client.socket.write(
      Buffer.concat([Buffer.from(`ic_exit 3 +${result.length}\n`), result, Buffer.from('whoami\n')]),
    );
    const call = await bench.host.nextCall();
    expect(call.text).toBe(`ic_exit 3 +${result.length}`);
    expect((await bench.host.callData(call.id, result.length)).equals(result)).toBe(true);
    bench.host.send('reply', call.id, 'err no-resources no room');
    await client.until(
      'both replies',
      () => client.received.toString() === 'err no-resources no room\nok 7 0\n',
    );
    client.socket.destroy();
  });

  it('stop where the credit does', async () => {
    await using bench = await start();
    const client = new RawClient(bench);
    client.socket.write(Buffer.concat([Buffer.from('ic_exit 0 +1000000\n'), Buffer.alloc(1_000_000)]));
    const { id } = await bench.host.nextCall();
    let sizeBytes = 0;
    for (; sizeBytes < CALL_WINDOW_BYTES;)
      sizeBytes += (await bench.host.next('callData', 15_000, id)).payload.length;
    await sleep(QUIET_MS);
    expect({ sizeBytes, more: bench.host.waiting('callData') }).toEqual({
      sizeBytes: CALL_WINDOW_BYTES,
      more: 0,
    });
    bench.host.grant(id, 5, 'callCredit');
    expect((await bench.host.next('callData', 15_000, id)).payload.length).toBe(5);
    client.socket.destroy();
    expect((await bench.host.next('cancel')).id).toBe(id);
  });

  it('are dropped once the reply is there, and when the call goes nowhere', async () => {
    await using bench = await start();
    const client = new RawClient(bench);
    const zeroes = Buffer.alloc(2_000_000);
    client.socket.write(`ic_exit 0 +${2 * zeroes.length}\n`);
    client.socket.write(zeroes);
    const call = await bench.host.nextCall();
    bench.host.send('reply', call.id, 'err result-too-large it is');
    client.socket.write(zeroes);
    client.socket.write('whoami +7\nwhoami\nwhoami\n');
    await client.until(
      'three replies',
      () => client.received.toString() === 'err result-too-large it is\nok 7 0\nok 7 0\n',
    );
    expect(bench.host.waiting('call')).toBe(0);
    client.socket.destroy();
  });

  it('that end half-way cancel it', async () => {
    await using bench = await start();
    const client = new RawClient(bench);
    client.socket.end('ic_exit 0 +10\nhalf');
    const { id } = await bench.host.nextCall();
    expect((await bench.host.next('callData', 15_000, id)).payload.toString()).toBe('half');
    expect((await bench.host.next('cancel')).id).toBe(id);
  });

  it.each(['+', '+ ', '+x', '+-1', '+1x', '+99999999999', '7'])(
    'are none after a line that ends in %s',
    async (word) => {
      await using bench = await start();
      const client = new RawClient(bench);
      client.socket.write(`ic_exit ${word}\nwhoami\n`);
      const { id, text } = await bench.host.nextCall();
      expect(text).toBe(`ic_exit ${word}`);
      bench.host.send('reply', id, 'err bad-request what');
      await client.until(
        'both replies',
        () => client.received.toString() === 'err bad-request what\nok 7 0\n',
      );
      client.socket.destroy();
    },
  );
});

describe.skipIf(!able)('the bytes of a reply', () => {
  it('reach the program as they were, and the next call waits for their end', async () => {
    await using bench = await start();
    const result = randomBytes(5 * CALL_WINDOW_BYTES + 77);
    const client = new RawClient(bench);
    client.socket.write(`wait_clones ${T} - - - -\nwhoami\n`);
    const { id } = await bench.host.nextCall();
    bench.host.send('reply', id, `ok 1 +${result.length}`);
    await bench.host.replyData(id, result);
    const line = `ok 1 +${result.length}\n`;
    const all = line.length + result.length + 'ok 7 0\n'.length;
    await client.until('all of it', () => client.received.length >= all);
    expect(client.received.toString('latin1', 0, line.length)).toBe(line);
    expect(client.received.subarray(line.length, line.length + result.length).equals(result)).toBe(true);
    expect(client.received.toString('latin1', line.length + result.length)).toBe('ok 7 0\n');
    client.socket.destroy();
  });

  it('are granted only as the program reads', async () => {
    await using bench = await start();
    const client = new RawClient(bench);
    client.socket.pause();
    client.socket.write(`wait_clones ${T} - - - -\n`);
    const { id } = await bench.host.nextCall();
    bench.host.send('reply', id, 'ok 1 +10000000');
    let credit = CALL_WINDOW_BYTES;
    let sent = 0;
    for (;;) {
      while (bench.host.waiting('callCredit') > 0)
        credit += (await bench.host.next('callCredit', 15_000, id)).payload.readUInt32LE(0);
      if (credit === 0) break;
      const part = Buffer.alloc(Math.min(credit, GUEST_PAYLOAD_MAX));
      bench.host.send('replyData', id, part);
      credit -= part.length;
      sent += part.length;
      await sleep(20);
    }
    expect(sent).toBeLessThan(2_000_000); // what the sockets hold
    client.socket.destroy();
    expect((await bench.host.next('cancel')).id).toBe(id);
  });

  it.each([
    ['more than were announced', 'ok 1 +5', '123456'],
    ['some that were not announced', 'err timeout late', '1'],
  ])('%s cost the program its connection, nobody else anything', async (_what, reply, data) => {
    await using bench = await start();
    const [client, other] = [new RawClient(bench), bench.client()];
    client.socket.write(`wait_clones ${T} - - - -\n`);
    const { id } = await bench.host.nextCall();
    if (reply.startsWith('ok')) bench.host.send('reply', id, reply);
    bench.host.send('replyData', id, data);
    await client.until('its end', () => client.ended);
    other.write('whoami\n');
    expect(await other.line()).toBe('ok 7 0');
    other.close();
  });

  it('end with the link, and in a clone', async () => {
    await using bench = await start();
    const clients = [new RawClient(bench), new RawClient(bench)] as const;
    clients[0].socket.write(`wait_clones ${T} - - - -\n`);
    const first = await bench.host.nextCall();
    bench.host.send('reply', first.id, 'ok 1 +100');
    bench.host.send('replyData', first.id, 'half');
    await clients[0].until('half', () => clients[0].received.toString() === 'ok 1 +100\nhalf');
    bench.host.close();
    await bench.accept();
    await clients[0].until('its end', () => clients[0].ended);
    bench.host.send('identity', 0, testIdentity());
    clients[1].socket.write(`wait_clones ${T} - - - -\n`);
    const second = await bench.host.nextCall();
    bench.host.send('reply', second.id, 'ok 1 +100');
    bench.host.send('replyData', second.id, 'half');
    const forker = bench.client();
    forker.write(`clone_master ${T}\n`);
    const fork = await bench.host.nextCall();
    bench.host.send('hold', fork.id);
    await bench.host.next('held', 15_000, fork.id);
    bench.host.send('identity', fork.id, testIdentity({ nclones: 1, vmid: 1, hostname: 'clone' }));
    expect(await forker.line()).toBe('ok 1 1');
    await clients[1].until('its end', () => clients[1].ended);
    forker.close();
  });
});
