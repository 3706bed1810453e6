// The host's end of a guest channel that another daemon had before: the test plays a guest in the middle of a conversation.

import { mkdtemp, rm } from 'node:fs/promises';
import { createServer, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, beforeEach, expect, it } from 'vitest';
import { encodeGuestFrame, GuestFrameDecoder, GuestFrameType, type GuestFrame } from '@snowflock/protocol';
import { AgentLink } from '../src/index.ts';

const HELLO = encodeGuestFrame({ type: GuestFrameType.hello, id: 0, payload: 'version=1 vcpus=1' });
const CALL = encodeGuestFrame({ type: GuestFrameType.call, id: 5, payload: 'list_tickets' });

let directory: string;
let server: Server;
let connections: Socket[];
let frames: GuestFrame[];
let link: AgentLink;
let end: () => void;

beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), 'sf-resume-'));
  connections = [];
  frames = [];
  const path = join(directory, 'agent');
  server = createServer((socket) => {
    socket.on('error', () => socket.destroy());
    connections.push(socket);
  }).listen(path);
  const gone = new Promise<void>((resolve) => (end = resolve));
  link = AgentLink.resume(path, { gone, greeting: Buffer.from('greeting') });
  link.on('frame', (frame) => frames.push(frame));
  await until(() => connections.length === 1);
});

afterEach(async () => {
  link.close();
  for (const socket of connections) socket.destroy();
  server.close();
  await rm(directory, { recursive: true, force: true });
});

async function until(condition: () => boolean): Promise<void> {
  for (let i = 0; i < 600 && !condition(); i++) await sleep(5);
  expect(condition()).toBe(true);
}

const types = (): number[] => frames.map((frame) => frame.type);

it('starts at the HELLO, whatever is before it and however it is cut', async () => {
  const half = encodeGuestFrame({ type: GuestFrameType.execOut, id: 3, payload: Buffer.alloc(3000, 0) });
  const stream = Buffer.concat([half.subarray(1000), CALL.subarray(3), HELLO, CALL]);
  for (let at = 0; at < stream.length; at += 97) {
    connections[0]?.write(stream.subarray(at, at + 97));
    await sleep(1);
  }
  await until(() => frames.length === 2);
  expect(types()).toEqual([GuestFrameType.hello, GuestFrameType.call]);
  expect(frames[1]?.payload.toString()).toBe('list_tickets');
});

it('calls again when the guest has not noticed that its host was away', async () => {
  let given = false;
  connections[0]?.resume().once('end', () => (given = true));
  connections[0]?.write(CALL);
  await until(() => connections.length === 2);
  expect(given).toBe(true);
  expect(types()).toEqual([]);
  connections[1]?.write(HELLO);
  await until(() => frames.length === 1);
  expect(link.closed).toBe(false);
});

it('greets at once, and answers on the connection that the HELLO came on', async () => {
  const received: Buffer[] = [];
  connections[0]?.on('data', (chunk) => received.push(chunk));
  await until(() => Buffer.concat(received).toString() === 'greeting');
  link.on('frame', (frame) => {
    if (frame.type === GuestFrameType.hello) link.reply(9, 'ok');
  });
  connections[0]?.write(HELLO);
  await until(() => Buffer.concat(received).length > 'greeting'.length);
  const [reply] = new GuestFrameDecoder().push(Buffer.concat(received).subarray('greeting'.length));
  expect(reply).toMatchObject({ type: GuestFrameType.reply, id: 9 });
});

it('ends with the VM, before the HELLO and after it', async () => {
  const closed = new Promise<void>((resolve) => link.once('close', resolve));
  end();
  await closed;
  expect(link.closed).toBe(true);
});

it('ends with its connection once it is open', async () => {
  connections[0]?.write(HELLO);
  await until(() => frames.length === 1);
  const closed = new Promise<void>((resolve) => link.once('close', resolve));
  connections[0]?.destroy();
  await closed;
});
