import * as fc from 'fast-check';
import { setImmediate } from 'node:timers/promises';
import { describe, expect, it } from 'vitest';
import { announcedBytes, CALL_WINDOW_BYTES, GUEST_PAYLOAD_MAX, SnowflockError } from '@snowflock/protocol';
import { IncomingBytes, OutgoingBytes } from '../src/sfld/call-bytes.ts';

/** An honest guest: sends `sizes` of the bytes as far as it may. */
async function sent(data: Buffer, sizes: readonly number[]): Promise<Buffer> {
  let credit = CALL_WINDOW_BYTES;
  const incoming = new IncomingBytes(data.length, (bytes) => (credit += bytes));
  const read = (async () => {
    const parts: Buffer[] = [];
    for await (const chunk of incoming) parts.push(chunk);
    return Buffer.concat(parts);
  })();
  for (let at = 0, turn = 0; at < data.length; turn++) {
    const size = Math.min(sizes[turn % sizes.length] ?? 1, credit, data.length - at);
    if (size === 0) await setImmediate();
    else incoming.push(data.subarray(at, at + size));
    credit -= size;
    at += size;
  }
  return read;
}

async function failure(incoming: IncomingBytes): Promise<string> {
  try {
    for await (const _chunk of incoming);
    return 'none';
  } catch (error) {
    return error instanceof SnowflockError ? error.code : String(error);
  }
}

describe('bytes of a call', () => {
  it('arrive as they were sent, however they are cut, and the credit never runs dry', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.integer({ min: 1, max: 5 * CALL_WINDOW_BYTES }),
        fc.array(fc.integer({ min: 1, max: GUEST_PAYLOAD_MAX }), { minLength: 1, maxLength: 5 }),
        async (sizeBytes, sizes) => {
          const coarse = sizes.map((size) => Math.max(size, 512));
          const data = Buffer.alloc(sizeBytes, 'snowflock');
          expect((await sent(data, coarse)).equals(data)).toBe(true);
        },
      ),
      { numRuns: 30 },
    );
  });

  it('are refused when there are more than announced, or than granted', async () => {
    const more = new IncomingBytes(4, () => undefined);
    more.push(Buffer.from('hello'));
    expect(await failure(more)).toBe('bad-request');
    const tooFast = new IncomingBytes(10 * CALL_WINDOW_BYTES, () => undefined);
    for (let at = 0; at <= CALL_WINDOW_BYTES; at += GUEST_PAYLOAD_MAX)
      tooFast.push(Buffer.alloc(GUEST_PAYLOAD_MAX));
    tooFast.push(Buffer.alloc(1));
    expect(await failure(tooFast)).toBe('bad-request');
  });

  it('end with whoever calls', async () => {
    const incoming = new IncomingBytes(4, () => undefined);
    incoming.push(Buffer.from('ab'));
    const told = failure(incoming);
    await setImmediate();
    incoming.fail(new SnowflockError('interrupted', 'gone'));
    incoming.push(Buffer.from('cd'));
    expect(await told).toBe('interrupted');
  });

  it('are announced by the last word of a line', () => {
    for (const [line, bytes] of [
      ['ic_exit 3 +5', 5],
      ['ok 2 +4294967295', 4294967295],
      ['ic_exit +0', 0],
      ['ic_exit', 0],
      ['+5', 0],
      ['ic_exit 3+5', 0],
      ['ic_exit +5 ', 0],
      ['ic_exit +12345678901', 0],
      ['ic_exit +-5', 0],
      ['ic_exit + 5', 0],
    ] as const)
      expect(announcedBytes(line), line).toBe(bytes);
  });
});

describe('bytes of a reply', () => {
  async function* parts(...sizes: number[]): AsyncGenerator<Buffer> {
    for (const size of sizes) yield Buffer.alloc(size, 'x');
  }

  it('go in frames as far as there is credit', async () => {
    const frames: number[] = [];
    const outgoing = new OutgoingBytes((chunk) => frames.push(chunk.length), new AbortController().signal);
    const size = CALL_WINDOW_BYTES + 100_000;
    const done = outgoing.sendAll(parts(10, size));
    await setImmediate();
    const inFlight = (): number => frames.reduce((sum, bytes) => sum + bytes, 0);
    expect(inFlight()).toBe(CALL_WINDOW_BYTES);
    outgoing.grant(50_000);
    await setImmediate();
    expect(inFlight()).toBe(CALL_WINDOW_BYTES + 50_000);
    outgoing.grant(1 << 30);
    await done;
    expect(inFlight()).toBe(size + 10);
    expect(Math.max(...frames)).toBeLessThanOrEqual(GUEST_PAYLOAD_MAX);
  });

  it('end when nobody wants them, and what gives them is closed', async () => {
    const gone = new AbortController();
    let closed = false;
    async function* source(): AsyncGenerator<Buffer> {
      try {
        for (;;) yield Buffer.alloc(GUEST_PAYLOAD_MAX);
      } finally {
        closed = true;
      }
    }
    const outgoing = new OutgoingBytes(() => undefined, gone.signal);
    const done = outgoing.sendAll(source());
    await setImmediate();
    gone.abort();
    await done;
    expect(closed).toBe(true);
  });
});
