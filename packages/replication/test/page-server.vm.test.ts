// The memserver's TCP side against peers that are not a memtap.

import { randomBytes } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { createConnection, type Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import {
  createPageFrame,
  decodePageHello,
  PAGE_FLAG_URGENT,
  PAGE_FRAME_HEADER_BYTES,
  PAGE_BYTES,
  PAGE_HELLO_BYTES,
  PAGE_WIRE_MAX_PAGES,
  PAGE_WELCOME_BYTES,
  pageDataOffset,
  PageErrorCode,
  PageFrameType,
  PageRegion,
  pageProof,
  readPageFrame,
  writePageFrame,
} from '@snowflock/protocol';
import { requireVm } from '../../../tests/require-vm.ts';
import type { MemserverProcess } from '../src/index.ts';
import { Harness } from './vm-harness.ts';

const PAGES = 1024;

describe.skipIf(!requireVm(['root']))('the page server', () => {
  let harness: Harness;
  let memserver: MemserverProcess;
  const key = randomBytes(32);

  beforeEach(async () => {
    harness = new Harness();
    memserver = await harness.memserver({ key });
    const source = await harness.source({
      leasePath: memserver.leasePath,
      pages: PAGES,
      seed: 3,
      kind: 'dense',
    });
    await memserver.freeze({ pid: source.pid, ramRanges: source.ranges });
  });
  afterEach(async () => harness[Symbol.asyncDispose]());

  /** A connection and what it has received; past the handshake if `key` is given. */
  async function connect(withKey?: Buffer): Promise<{ socket: Socket; received: () => Buffer }> {
    const socket = createConnection({ port: memserver.port, host: '127.0.0.1' });
    harness.defer(() => void socket.destroy());
    let bytes = Buffer.alloc(0);
    socket.on('error', () => socket.destroy());
    socket.on('data', (chunk: Buffer) => (bytes = Buffer.concat([bytes, chunk])));
    await expect.poll(() => bytes.length).toBe(PAGE_HELLO_BYTES);
    const nonces = { server: decodePageHello(bytes), client: randomBytes(32) };
    bytes = Buffer.alloc(0);
    if (withKey !== undefined) {
      socket.write(Buffer.concat([nonces.client, pageProof(withKey, 'client', nonces)]));
      const greeting = PAGE_WELCOME_BYTES + PAGE_FRAME_HEADER_BYTES;
      await expect.poll(() => bytes.length === greeting || socket.destroyed).toBe(true);
      if (bytes.length === greeting) {
        const frame = createPageFrame();
        readPageFrame(bytes, PAGE_WELCOME_BYTES, greeting, frame);
        expect(frame.type).toBe(PageFrameType.frozen);
      }
      bytes = bytes.subarray(greeting);
    }
    return { socket, received: () => bytes };
  }

  function read(fields: object): Buffer {
    const bytes = Buffer.alloc(PAGE_FRAME_HEADER_BYTES);
    writePageFrame(bytes, 0, { ...createPageFrame(), type: PageFrameType.read, pageCount: 1, ...fields });
    return bytes;
  }

  it('answers pings and pages, and says what is wrong with a read', async () => {
    const { socket, received } = await connect(key);
    socket.write(
      Buffer.concat([
        read({ type: PageFrameType.ping, pageCount: 0, requestId: 5 }),
        read({ flags: PAGE_FLAG_URGENT, firstPage: PAGES - 1, requestId: 6 }),
        read({ flags: PAGE_FLAG_URGENT, firstPage: PAGES - 1, pageCount: 2, requestId: 7 }),
        read({ region: PageRegion.disk, requestId: 8 }),
      ]),
    );
    const seen: unknown[] = [];
    const frame = createPageFrame();
    const size = 3 * PAGE_FRAME_HEADER_BYTES + PAGE_FRAME_HEADER_BYTES + 4 + 4096;
    await expect.poll(() => received().length).toBe(size);
    for (let at = 0; at < size; at += frame.length) {
      readPageFrame(received(), at, size, frame);
      seen.push([frame.type, frame.requestId, frame.flags]);
    }
    expect(seen).toEqual([
      [PageFrameType.pong, 5, 0],
      [PageFrameType.data, 6, 0],
      [PageFrameType.error, 7, PageErrorCode.outOfRange],
      [PageFrameType.error, 8, PageErrorCode.noRegion],
    ]);
  });

  it('drops peers with a wrong key, with garbage, and those that say nothing, and counts them', async () => {
    const wrong = await connect(randomBytes(32));
    const garbage = await connect(key);
    garbage.socket.write(randomBytes(64));
    const silent = await connect();
    await expect.poll(() => wrong.socket.destroyed && garbage.socket.destroyed).toBe(true);
    expect(silent.socket.destroyed).toBe(false);
    await expect.poll(() => silent.socket.destroyed, { timeout: 30_000 }).toBe(true);
    expect(await memserver.stats()).toMatchObject({
      failedHandshakes: 2,
      droppedClients: 2,
      clients: 0,
      requests: 0,
    });
  });

  it('sends no more than a few megabytes to a peer that does not read, and the rest when it does', async () => {
    const { socket, received } = await connect(key);
    const reads = 400;
    socket.pause();
    for (let id = 0; id < reads; id++) socket.write(read({ pageCount: 256, requestId: id, flags: id % 2 }));
    await sleep(1000);
    expect(residentMb(memserver.pid)).toBeLessThan(200);
    const other = await connect(key);
    other.socket.write(read({ requestId: 1, flags: PAGE_FLAG_URGENT }));
    await expect.poll(() => other.received().length).toBeGreaterThan(4096);
    let total = 0;
    socket.removeAllListeners('data');
    socket.on('data', (chunk: Buffer) => (total += chunk.length));
    socket.resume();
    await expect
      .poll(() => total + received().length, { timeout: 20_000 })
      .toBe(reads * (pageDataOffset(PAGE_WIRE_MAX_PAGES) + PAGE_WIRE_MAX_PAGES * PAGE_BYTES));
  });
});

function residentMb(pid: number): number {
  return Number(/VmRSS:\s*(\d+)/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]) / 1024;
}
