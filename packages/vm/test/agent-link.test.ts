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

it('closes on a guest that breaks the framing, and says nothing more', async () => {
  const closed = new Promise<void>((resolve) => link.once('close', resolve));
  guest.write(Buffer.alloc(64, 0xff));
  await closed;
  expect(link.closed).toBe(true);
});
