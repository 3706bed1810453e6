// The host's end of the guest channel against a real socket where the test plays the guest.

import { mkdtemp, rm } from 'node:fs/promises';
import { createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, beforeEach, expect, it } from 'vitest';
import { encodeGuestFrame, GuestFrameDecoder, GuestFrameType, type GuestFrame } from '@snowflock/protocol';
import { AgentLink } from '../src/index.ts';

let directory: string;
let guest: Socket;
let link: AgentLink;
let received: GuestFrame[];
let stop: () => void;

beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), 'sf-link-'));
  received = [];
  const connected = Promise.withResolvers<Socket>();
  const server = createServer((socket) => connected.resolve(socket)).listen(join(directory, 'agent'));
  link = await AgentLink.connect(join(directory, 'agent'), {
    timeoutMs: 1000,
    gone: new Promise(() => undefined),
  });
  guest = await connected.promise;
  const decoder = new GuestFrameDecoder();
  guest.on('data', (chunk) => received.push(...decoder.push(chunk)));
  guest.on('error', () => guest.destroy());
  stop = () => server.close();
});

afterEach(async () => {
  link.close();
  guest.destroy();
  stop();
  await rm(directory, { recursive: true, force: true });
});

async function until(condition: () => boolean): Promise<void> {
  for (let i = 0; i < 200 && !condition(); i++) await sleep(5);
  expect(condition()).toBe(true);
}

it('keeps everything but the identity back while a fork holds the channel', async () => {
  const held = link.hold(7, 1000);
  await until(() => received.length === 1);
  link.reply(1, 'ok');
  guest.write(encodeGuestFrame({ type: GuestFrameType.held, id: 7 }));
  await held;
  link.reply(2, 'ok');
  await sleep(30);
  expect(received.map((frame) => frame.type)).toEqual([GuestFrameType.hold]);
  link.release();
  await until(() => received.length === 3);
  expect(received.slice(1).map((frame) => frame.id)).toEqual([1, 2]);
});

it('does not wait for ever for a guest that does not hold still', async () => {
  await expect(link.hold(7, 50)).rejects.toThrow(/hold still .* 50 ms/);
  link.release();
  await expect(link.hold(8, 50)).rejects.toThrow(/within/);
});

it('ignores a held of another fork', async () => {
  guest.write(encodeGuestFrame({ type: GuestFrameType.held, id: 6 }));
  await expect(link.hold(7, 50)).rejects.toThrow(/within/);
});

it('tells a waiter that the VM has ended', async () => {
  const waiting = link.identified(3, 5000);
  guest.destroy();
  await expect(waiting).rejects.toThrow(/ended/);
});

it('closes on a guest that breaks the framing, and says why from then on', async () => {
  const closed = new Promise<void>((resolve) => link.once('close', resolve));
  const waiting = link.identified(3, 5000);
  guest.write(Buffer.alloc(64, 0xff));
  await expect(waiting).rejects.toThrow(/broke the rules of its channel .*guest frame/);
  await closed;
  expect(link.closed).toBe(true);
  expect(link.closeReason).toMatch(/broke the rules/);
});

it('takes nothing more from a guest that leaves its answers unread, until it reads them', async () => {
  let calls = 0;
  link.on('frame', (frame) => {
    calls++;
    link.reply(frame.id, 'x'.repeat(60_000));
  });
  guest.pause();
  const call = encodeGuestFrame({ type: GuestFrameType.call, id: 1, payload: 'list_tickets' });
  for (let i = 0; i < 20_000; i++) guest.write(call);
  await sleep(100);
  const before = calls;
  await sleep(50);
  expect(calls).toBe(before);
  expect(calls).toBeLessThan(10_000);
  guest.resume();
  await until(() => calls > before);
});
