// An sfld whose guests are this machine: exec sessions run local commands, and the rules of the channel are checked.

import { spawn } from 'node:child_process';
import { mkdtemp, rm } from 'node:fs/promises';
import { createServer, type Server } from 'node:http';
import { join } from 'node:path';
import type { Duplex } from 'node:stream';
import {
  encodeGuestFrame,
  EXEC_WINDOW_BYTES,
  GuestFrameDecoder,
  GuestFrameType,
  type GuestFrame,
} from '@snowflock/protocol';

export interface FakeSfld extends AsyncDisposable {
  readonly socketPath: string;
  /** Broken rules of the guest channel; a test expects none. */
  readonly violations: string[];
  readonly signals: number[];
  /** What was asked for, as 'METHOD path body'. */
  readonly requests: string[];
  /** Answers by 'METHOD path'. */
  readonly replies: Map<string, { status: number; body: unknown }>;
  /** How many upgrades fail with 'timeout' first, as a booting guest's do. */
  booting: number;
  /** The guest stops granting input and reading it. */
  stuck: boolean;
  /** Reads nothing of an upgraded connection. */
  deaf: boolean;
  readonly sockets: Set<Duplex>;
}

export async function startFakeSfld(): Promise<FakeSfld> {
  const dir = await mkdtemp('/tmp/sfcli-');
  const socketPath = join(dir, 'sfld.sock');
  const server: Server = createServer();
  const fake: FakeSfld = {
    socketPath,
    violations: [],
    signals: [],
    requests: [],
    replies: new Map(),
    booting: 0,
    stuck: false,
    deaf: false,
    sockets: new Set(),
    async [Symbol.asyncDispose]() {
      for (const socket of fake.sockets) socket.destroy();
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
      await rm(dir, { recursive: true, force: true });
    },
  };
  server.on('request', (request, response) => {
    let body = '';
    request.on('data', (chunk: Buffer) => (body += chunk.toString()));
    request.on('end', () => {
      fake.requests.push([request.method, request.url, body].filter(Boolean).join(' '));
      const missing = {
        status: 404,
        body: { error: { code: 'no-such-cluster', message: 'no such thing here' } },
      };
      const reply = fake.replies.get(`${request.method} ${request.url}`) ?? missing;
      response.writeHead(reply.status, { 'content-type': 'application/json' });
      response.end(reply.body === undefined ? '' : JSON.stringify(reply.body));
    });
  });
  server.on('upgrade', (request, socket: Duplex) => {
    const refuse = (status: string, code: string, message: string): void => {
      const body = JSON.stringify({ error: { code, message } });
      socket.end(
        `HTTP/1.1 ${status}\r\ncontent-type: application/json\r\ncontent-length: ${body.length}\r\nconnection: close\r\n\r\n${body}`,
      );
    };
    fake.sockets.add(socket);
    socket.on('error', () => undefined);
    socket.on('close', () => fake.sockets.delete(socket));
    if (request.url?.startsWith('/v1/vms/9:'))
      return refuse('404 Not Found', 'no-such-vm', 'there is no VM 9:9');
    if (fake.booting-- > 0)
      return refuse('504 Gateway Timeout', 'timeout', 'the start of the guest agent takes too long');
    const protocol = request.headers.upgrade ?? '';
    socket.write(`HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: ${protocol}\r\n\r\n`);
    if (protocol === 'snowflock-console')
      socket.on('data', (chunk: Buffer) => socket.write(chunk.toString().toUpperCase()));
    else if (fake.deaf) socket.pause();
    else serveExec(fake, socket);
  });
  await new Promise<void>((resolve) => server.listen(socketPath, resolve));
  return fake;
}

function u32(value: number): Buffer {
  const buffer = Buffer.alloc(4);
  buffer.writeUInt32LE(value);
  return buffer;
}

function serveExec(fake: FakeSfld, socket: Duplex): void {
  const decoder = new GuestFrameDecoder();
  let child: ReturnType<typeof spawn> | undefined;
  let inputWindow = EXEC_WINDOW_BYTES;
  let outputWindow = EXEC_WINDOW_BYTES;
  let inputEnded = false;
  const waiting: (() => void)[] = [];
  const wake = (): void => {
    for (const resolve of waiting.splice(0)) resolve();
  };
  const send = (type: GuestFrameType, payload: Buffer): void => {
    if (!socket.destroyed) socket.write(encodeGuestFrame({ type, id: 1, payload }));
  };
  const relay = async (stream: NodeJS.ReadableStream, number: 1 | 2): Promise<void> => {
    for await (const chunk of stream as AsyncIterable<Buffer>)
      for (let rest = chunk; rest.length > 0;) {
        while (outputWindow === 0 && !socket.destroyed)
          await new Promise<void>((resolve) => waiting.push(resolve));
        if (socket.destroyed) return;
        const data = rest.subarray(0, Math.min(outputWindow, 60_000));
        outputWindow -= data.length;
        rest = rest.subarray(data.length);
        send(GuestFrameType.execOut, Buffer.concat([Buffer.from([number]), data]));
      }
    send(GuestFrameType.execOut, Buffer.from([number]));
  };
  const start = (argv: string[]): void => {
    const [file = 'false', ...args] = argv;
    const started = spawn(file, args, { stdio: 'pipe', detached: true });
    child = started;
    started.stdin.on('error', () => undefined);
    const failed = new Promise<void>((resolve) => started.once('error', () => resolve()));
    const ended = new Promise<number>((resolve) => {
      started.once('error', () => resolve(127));
      started.once('exit', (status, signal) => resolve(status ?? 128 + (signal === 'SIGINT' ? 2 : 15)));
    });
    const outputs = Promise.all([relay(started.stdout, 1), relay(started.stderr, 2)]);
    void Promise.race([outputs, failed]).then(async () => {
      const status = Buffer.alloc(4);
      status.writeInt32LE(await ended);
      send(GuestFrameType.execExit, status);
    });
  };
  const onFrame = (frame: GuestFrame): void => {
    if (frame.id !== 1) fake.violations.push(`frame for session ${frame.id}`);
    if (frame.type === GuestFrameType.execStart) start(frame.payload.toString().split('\0').slice(0, -1));
    else if (frame.type === GuestFrameType.execIn) {
      if (inputEnded) fake.violations.push('input after its end');
      inputWindow -= frame.payload.length;
      if (inputWindow < 0) fake.violations.push('more input than granted');
      if (frame.payload.length === 0) {
        inputEnded = true;
        if (!fake.stuck) child?.stdin?.end();
      } else if (!fake.stuck)
        child?.stdin?.write(frame.payload, () => {
          inputWindow += frame.payload.length;
          send(GuestFrameType.execCredit, u32(frame.payload.length));
        });
    } else if (frame.type === GuestFrameType.execCredit) {
      outputWindow += frame.payload.readUInt32LE(0);
      if (outputWindow > EXEC_WINDOW_BYTES) fake.violations.push('more output granted than was sent');
      wake();
    } else if (frame.type === GuestFrameType.execSignal) {
      fake.signals.push(frame.payload[0] ?? 0);
      if (child?.pid) process.kill(-child.pid, frame.payload[0]);
    } else fake.violations.push(`frame of type ${frame.type}`);
  };
  socket.on('data', (chunk: Buffer) => decoder.push(chunk).forEach(onFrame));
  socket.on('close', () => {
    wake();
    child?.kill('SIGKILL');
  });
}
