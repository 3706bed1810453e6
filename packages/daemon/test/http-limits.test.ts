// Every limit of the listeners, met with real connections.

import { once } from 'node:events';
import { mkdtempSync, rmSync, statSync } from 'node:fs';
import * as net from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as tls from 'node:tls';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { ControlClient, ROLES, SnowflockError, type HttpLimits, type TlsIdentity } from '@snowflock/protocol';
import { z } from 'zod';
import { createControlServer, type ControlServer } from '../src/http.ts';
import { HEADERS_MAX_BYTES, HEADERS_TIMEOUT_MS, JSON_BODY_MAX_BYTES } from '../src/http-limits.ts';
import { callerSignal } from '../src/http-routes.ts';
import { createLog } from '../src/log.ts';
import { createTestCa, type TestCa } from './sfmd-fixture.ts';

const LIMITS: HttpLimits = { connections: 8, connectionsPerPeer: 4, requests: 5, requestsPerPeer: 3 };
const ANYONE = { config: { roles: ROLES } };
let ca: TestCa;
let host1: TlsIdentity;
let host2: TlsIdentity;
let dir: string;
let server: ControlServer;
let port: number;
let lines: string[];
const stack: { close?: () => void; destroy?: () => void }[] = [];

beforeAll(() => {
  ca = createTestCa();
  host1 = ca.issue('host1', '127.0.0.1');
  host2 = ca.issue('host2');
});
afterAll(() => ca[Symbol.dispose]());
beforeEach(async () => {
  dir = mkdtempSync(join(tmpdir(), 'snowflock-limits-'));
  lines = [];
  server = await createControlServer({
    name: 'testd',
    log: createLog({ name: 'testd', write: (line) => lines.push(line) }),
    limits: LIMITS,
    register(app) {
      app.get('/v1/wait', ANYONE, async (_request, reply) => {
        await once(callerSignal(reply), 'abort');
      });
      app.post('/v1/echo', ANYONE, (request) => request.body);
    },
  });
  await server.listenUnix(join(dir, 'run/d.sock'));
  ({ port } = await server.listenTls({ address: '127.0.0.1', port: 0, tls: host1 }));
});
afterEach(async () => {
  for (const each of stack.splice(0)) (each.close ?? each.destroy)?.call(each);
  await server.close({ deadlineMs: 200 });
  rmSync(dir, { recursive: true, force: true });
});

function client(identity: TlsIdentity | 'unix'): ControlClient {
  const made =
    identity === 'unix'
      ? new ControlClient({ socketPath: join(dir, 'run/d.sock') })
      : new ControlClient({ address: '127.0.0.1', port, tls: identity });
  stack.push(made);
  return made;
}
const echo = (peer: ControlClient, body: unknown = {}): Promise<string> =>
  peer.request({ method: 'POST', path: '/v1/echo', body, reply: z.unknown(), timeoutMs: 5000 }).then(
    () => 'ok',
    (error: unknown) => (error instanceof SnowflockError ? `${error.code}: ${error.message}` : String(error)),
  );
const wait = (peer: ControlClient): void =>
  void peer
    .request({ method: 'GET', path: '/v1/wait', reply: z.unknown(), timeoutMs: 60_000 })
    .catch(() => undefined);
async function rawConnection(): Promise<tls.TLSSocket> {
  const socket = tls.connect({ host: '127.0.0.1', port, ...host2, servername: 'host1' });
  stack.push(socket);
  socket.on('error', () => undefined);
  await once(socket, 'secureConnect');
  return socket;
}
async function answerTo(socket: net.Socket, bytes: string): Promise<string> {
  let text = '';
  socket.on('data', (chunk: Buffer) => (text += chunk.toString('latin1')));
  socket.write(bytes);
  await once(socket, 'close');
  return text;
}

describe('a request', () => {
  it('has a body of bounded size: 413', async () => {
    expect(await echo(client('unix'), { x: 'y'.repeat(JSON_BODY_MAX_BYTES - 100) })).toBe('ok');
    expect(await echo(client('unix'), { x: 'y'.repeat(JSON_BODY_MAX_BYTES) })).toMatch(
      /^too-large|^host-down/,
    );
    const socket = await rawConnection();
    const head = `POST /v1/echo HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: ${JSON_BODY_MAX_BYTES + 1}\r\nConnection: close\r\n\r\n`;
    expect(await answerTo(socket, head)).toMatch(/^HTTP\/1.1 413 [^]*"code":"too-large"/);
  });

  it('has headers of bounded size, and is HTTP: 431, 400', async () => {
    const large = `GET /v1/wait HTTP/1.1\r\nHost: x\r\nX: ${'y'.repeat(HEADERS_MAX_BYTES)}\r\n\r\n`;
    expect(await answerTo(await rawConnection(), large)).toMatch(/^HTTP\/1.1 431 [^]*"code":"too-large"/);
    expect(await answerTo(await rawConnection(), 'garbage\r\n\r\n')).toMatch(
      /^HTTP\/1.1 400 [^]*"code":"bad-request"/,
    );
    expect(await echo(client(host2))).toBe('ok');
  });

  it('that does not arrive in time is given up: 408', { timeout: HEADERS_TIMEOUT_MS + 15_000 }, async () => {
    const startedAt = performance.now();
    const slow = answerTo(await rawConnection(), 'GET /v1/wait HTTP/1.1\r\nHost: x\r\n');
    const silent = net.connect({ host: '127.0.0.1', port });
    stack.push(silent);
    silent.on('error', () => undefined).resume();
    await once(silent, 'close');
    expect(await slow).toMatch(/^HTTP\/1.1 408 [^]*"code":"timeout"/);
    expect(performance.now() - startedAt).toBeLessThan(HEADERS_TIMEOUT_MS + 5000);
  });
});

describe('too much at once', () => {
  it('of one certificate: 429; the others go on; of all together: 503', async () => {
    for (let i = 0; i < LIMITS.requestsPerPeer; i++) wait(client('unix'));
    await expect
      .poll(() => echo(client('unix')))
      .toMatch(/^busy: too many: 3 requests of 'the unix socket' under way/);
    const other = client(host2);
    expect(await echo(other)).toBe('ok');
    const waiting = client(host2);
    for (let i = 0; i < LIMITS.requests - LIMITS.requestsPerPeer; i++) wait(waiting);
    await expect.poll(() => echo(other)).toMatch(/^unavailable: this daemon is full: 5 requests under way/);
    waiting.close();
    await expect.poll(() => echo(other)).toBe('ok');
  });

  it('connections of one address: 429, then cut; when they have ended all is well', async () => {
    const sockets: tls.TLSSocket[] = [];
    for (let i = 0; i < LIMITS.connectionsPerPeer; i++) sockets.push(await rawConnection());
    expect(await echo(client(host2))).toMatch(/^busy: too many: 4 connections from 127\.0\.0\.1/);
    for (let i = 0; i < LIMITS.connectionsPerPeer; i++) sockets.push(await rawConnection());
    const cut = net.connect({ host: '127.0.0.1', port });
    cut.on('error', () => undefined).resume();
    await once(cut, 'close');
    expect(lines.join('')).toContain('more than 8 connections from one address');
    for (const socket of sockets) socket.destroy();
    await expect.poll(() => echo(client(host2))).toBe('ok');
  });

  it('connections of all: 503', async () => {
    const sockets: net.Socket[] = [];
    for (let i = 0; i < LIMITS.connectionsPerPeer; i++) {
      sockets.push(await rawConnection());
      const local = net.connect({ path: join(dir, 'run/d.sock') });
      stack.push(local);
      await once(local, 'connect');
      sockets.push(local);
    }
    const other = net.connect({ host: '127.0.0.1', port, localAddress: '127.0.0.2' });
    stack.push(other);
    const socket = tls.connect({ socket: other, ...host2, servername: 'host1' });
    await once(socket, 'secureConnect');
    expect(await answerTo(socket, 'GET /v1/wait HTTP/1.1\r\nHost: x\r\n\r\n')).toMatch(
      /^HTTP\/1.1 503 [^]*this daemon is full: 8 connections \(max_connections\)/,
    );
  });
});

it("the unix socket may be a group's: 0660 in a directory of 0710", async () => {
  await using other = await createControlServer({
    name: 'testd',
    log: createLog({ name: 'testd', level: 'silent' }),
    register: () => undefined,
  });
  const path = join(dir, 'group/d.sock');
  const gid = process.getgid?.() ?? 0;
  await other.listenUnix(path, { gid });
  expect([statSync(path).mode & 0o777, statSync(path).gid]).toEqual([0o660, gid]);
  expect(statSync(join(dir, 'group')).mode & 0o777).toBe(0o710);
});
