import { once } from 'node:events';
import { mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs';
import * as net from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { z } from 'zod';
import { ControlClient, NoReply, ROLES, SnowflockError, type TlsIdentity } from '@snowflock/protocol';
import { BINARY_BODY_MAX_BYTES } from '../src/http-limits.ts';
import { createControlServer, type ControlServer } from '../src/http.ts';
import { callerSignal, parseInput } from '../src/http-routes.ts';
import { peerOf } from '../src/peer.ts';
import { createLog, silentLog } from '../src/log.ts';
import { createTestCa, type TestCa } from './sfmd-fixture.ts';

let ca: TestCa;
let foreignCa: TestCa;
let host1: TlsIdentity;
let host2: TlsIdentity;
let foreign: TlsIdentity;
let dir: string;
let server: ControlServer;
let port: number;
let arrivedCount = 0;
let goneCount = 0;
const clients: ControlClient[] = [];

const ANYONE = { config: { roles: ROLES } };
const Sum = z.object({ a: z.int(), b: z.int() });

function client(options: { tls?: TlsIdentity; host?: string } | 'unix'): ControlClient {
  const made =
    options === 'unix'
      ? new ControlClient({ socketPath: join(dir, 'run/d.sock') })
      : new ControlClient({
          address: '127.0.0.1',
          port,
          tls: options.tls ?? host2,
          ...(options.host ? { host: options.host } : {}),
        });
  clients.push(made);
  return made;
}

const code = (error: unknown): string => (error instanceof SnowflockError ? error.code : String(error));
const failure = async (promise: Promise<unknown>): Promise<SnowflockError> => {
  const error: unknown = await promise.then(
    () => 'no error',
    (thrown: unknown) => thrown,
  );
  expect(error).toBeInstanceOf(SnowflockError);
  return error as SnowflockError;
};

beforeAll(() => {
  ca = createTestCa();
  foreignCa = createTestCa();
  host1 = ca.issue('host1', '127.0.0.1');
  host2 = ca.issue('host2');
  foreign = { ...foreignCa.issue('host1'), ca: host1.ca };
});
afterAll(() => {
  ca[Symbol.dispose]();
  foreignCa[Symbol.dispose]();
});

beforeEach(async () => {
  arrivedCount = goneCount = 0;
  dir = mkdtempSync(join(tmpdir(), 'snowflock-http-'));
  server = await createControlServer({
    name: 'testd',
    log: silentLog(),
    register(app) {
      app.post('/v1/sum', ANYONE, (request) => {
        const { a, b } = parseInput(Sum, request.body);
        return { sum: a + b };
      });
      app.post('/v1/bytes', { ...ANYONE, bodyLimit: BINARY_BODY_MAX_BYTES }, (request) => ({
        length: (request.body as Buffer).length,
      }));
      app.post('/v1/none', ANYONE, (_request, reply) => reply.code(204).send());
      app.get('/v1/boom', ANYONE, () => {
        throw new SnowflockError('no-such-ticket', 'no ticket T; see list_tickets');
      });
      app.get('/v1/crash', ANYONE, () => {
        throw new TypeError('oops');
      });
      app.get('/v1/wait', ANYONE, async (_request, reply) => {
        arrivedCount += 1;
        await once(callerSignal(reply), 'abort');
        goneCount += 1;
      });
      app.put<{ Params: { host: string } }>('/v1/hosts/:host', ANYONE, (request) => ({
        isHost: peerOf(request.raw.socket).isHost(request.params.host),
      }));
    },
  });
  server.onUpgrade({ reply: 'echo', path: '/v1/vms/:vm/exec', roles: ROLES }, ({ params, accept }) => {
    if (params['vm'] !== '0:1') throw new SnowflockError('no-such-vm', `no VM ${params['vm'] ?? ''}`);
    const socket = accept();
    socket.pipe(socket);
  });
  await server.listenUnix(join(dir, 'run/d.sock'));
  ({ port } = await server.listenTls({ address: '127.0.0.1', port: 0, tls: host1 }));
});
afterEach(async () => {
  for (const each of clients.splice(0)) each.close();
  await server.close({ deadlineMs: 500 });
  rmSync(dir, { recursive: true, force: true });
});

describe.each(['unix', 'tls'] as const)('over %s', (kind) => {
  const open = (): ControlClient => client(kind === 'unix' ? 'unix' : { host: 'host1' });
  const timeoutMs = 5000;

  it('answers JSON, binary and empty bodies', async () => {
    const peer = open();
    const sum = await peer.request({
      method: 'POST',
      path: '/v1/sum',
      body: { a: 1, b: 2 },
      reply: z.object({ sum: z.int() }),
      timeoutMs,
    });
    expect(sum).toEqual({ sum: 3 });
    const body = Buffer.alloc(3 << 20, 7);
    const bytes = await peer.request({
      method: 'POST',
      path: '/v1/bytes',
      body,
      reply: z.object({ length: z.int() }),
      timeoutMs,
    });
    expect(bytes.length).toBe(body.length);
    expect(
      await peer.request({ method: 'POST', path: '/v1/none', reply: NoReply, timeoutMs }),
    ).toBeUndefined();
  });

  it('names the field that is wrong, carries codes over, and survives a crash in a handler', async () => {
    const peer = open();
    const wrong = await failure(
      peer.request({ method: 'POST', path: '/v1/sum', body: { a: 1, b: 'x' }, reply: NoReply, timeoutMs }),
    );
    expect([wrong.code, wrong.message]).toEqual(['bad-request', expect.stringContaining('body.b')]);
    const boom = await failure(peer.request({ method: 'GET', path: '/v1/boom', reply: NoReply, timeoutMs }));
    expect([boom.code, boom.message]).toEqual(['no-such-ticket', 'no ticket T; see list_tickets']);
    expect(
      (await failure(peer.request({ method: 'GET', path: '/v1/crash', reply: NoReply, timeoutMs }))).code,
    ).toBe('internal');
    expect(
      (await failure(peer.request({ method: 'GET', path: '/v1/nothing', reply: NoReply, timeoutMs })))
        .message,
    ).toContain('testd has no GET');
    const odd = await failure(
      peer.request({
        method: 'POST',
        path: '/v1/sum',
        body: { a: 1, b: 2 },
        reply: z.object({ x: z.int() }),
        timeoutMs,
      }),
    );
    expect([odd.code, odd.message]).toEqual([
      'unavailable',
      expect.stringContaining('not what was expected'),
    ]);
    const large = { x: 'y'.repeat(2 << 20) };
    expect(
      (
        await failure(
          peer.request({ method: 'POST', path: '/v1/sum', body: large, reply: NoReply, timeoutMs }),
        )
      ).code,
    ).toMatch(/too-large|host-down/);
  });

  it('has deadlines and cancellation, which the server notices', async () => {
    const peer = open();
    const slow = await failure(
      peer.request({ method: 'GET', path: '/v1/wait', reply: NoReply, timeoutMs: 300 }),
    );
    expect([slow.code, slow.message]).toEqual([
      'timeout',
      expect.stringMatching(/GET \/v1\/wait at .*300 ms/),
    ]);
    const abort = new AbortController();
    // On a busy machine the first request may have met its deadline before it was sent.
    const arrivedBefore = arrivedCount;
    const waiting = failure(
      peer.request({ method: 'GET', path: '/v1/wait', reply: NoReply, timeoutMs, signal: abort.signal }),
    );
    await expect.poll(() => arrivedCount).toBe(arrivedBefore + 1);
    abort.abort();
    expect(code(await waiting)).toBe('interrupted');
    await expect.poll(() => goneCount).toBe(arrivedBefore + 1);
  });

  it('upgrades to a byte stream, and refuses with a reason', async () => {
    const peer = open();
    const socket = await peer.upgrade({ path: '/v1/vms/0:1/exec', protocol: 'echo', timeoutMs });
    socket.write('hello');
    expect(String((await once(socket, 'data'))[0])).toBe('hello');
    expect(
      (await failure(peer.upgrade({ path: '/v1/vms/0:2/exec', protocol: 'echo', timeoutMs }))).code,
    ).toBe('no-such-vm');
    expect(
      (await failure(peer.upgrade({ path: '/v1/vms/0:1/exec', protocol: 'other', timeoutMs }))).code,
    ).toBe('bad-request');
    const closed = once(socket, 'close');
    await server.close({ deadlineMs: 100 });
    await closed;
  });
});

describe('who may connect', () => {
  const request = (peer: ControlClient): Promise<unknown> =>
    peer.request({ method: 'POST', path: '/v1/none', reply: NoReply, timeoutMs: 5000 });

  it('refuses a caller with a foreign certificate, or none', async () => {
    expect((await failure(request(client({ tls: foreign })))).code).toMatch(/unauthorized|host-down/);
    const none = { ca: host1.ca } as unknown as TlsIdentity;
    expect((await failure(request(client({ tls: none })))).code).toMatch(/unauthorized|host-down/);
    const plain = net.connect({ host: '127.0.0.1', port });
    plain.write('GET /v1/boom HTTP/1.1\r\nHost: x\r\n\r\n');
    let answer = '';
    plain.on('data', (chunk) => (answer += chunk.toString('latin1')));
    plain.on('error', () => undefined);
    await once(plain, 'close');
    expect(answer).not.toContain('HTTP/1.1');
  });

  it('refuses a server of another CA, or with another name', async () => {
    expect((await failure(request(client({ tls: { ...host2, ca: foreignCa.issue('z').ca } })))).code).toBe(
      'unauthorized',
    );
    const misnamed = await failure(request(client({ host: 'host9' })));
    expect([misnamed.code, misnamed.message]).toEqual(['unauthorized', expect.stringContaining('host9')]);
    await request(client({ host: 'host1' }));
    await request(client({ host: '127.0.0.1' }));
  });

  it('knows which host calls', async () => {
    const ask = (peer: ControlClient, host: string) =>
      peer.request({
        method: 'PUT',
        path: `/v1/hosts/${host}`,
        reply: z.object({ isHost: z.boolean() }),
        timeoutMs: 5000,
      });
    expect(await ask(client({}), 'host2')).toEqual({ isHost: true });
    expect(await ask(client({}), 'host1')).toEqual({ isHost: false });
    expect(await ask(client('unix'), 'host1')).toEqual({ isHost: true });
  });
});

describe('the unix socket', () => {
  it('is 0600 in a 0700 directory, replaces a dead one, refuses a live one and other files', async () => {
    expect(statSync(join(dir, 'run')).mode & 0o777).toBe(0o700);
    expect(statSync(join(dir, 'run/d.sock')).mode & 0o777).toBe(0o600);
    await using other = await createControlServer({
      name: 'testd',
      log: silentLog(),
      register: () => undefined,
    });
    await expect(other.listenUnix(join(dir, 'run/d.sock'))).rejects.toThrow('running already');
    const file = join(dir, 'run/plain');
    writeFileSync(file, '');
    await expect(other.listenUnix(file)).rejects.toThrow('not a socket');
    await expect(other.listenTls({ address: '127.0.0.1', port, tls: host1 })).rejects.toThrow('EADDRINUSE');
  });

  it('says what to do when nobody listens', async () => {
    await server.close();
    const absent = await failure(
      client('unix').request({ method: 'GET', path: '/v1/state', reply: NoReply, timeoutMs: 500 }),
    );
    expect([absent.code, absent.message]).toEqual(['host-down', expect.stringContaining('run_dir')]);
    const refused = await failure(
      client({}).request({ method: 'GET', path: '/v1/state', reply: NoReply, timeoutMs: 500 }),
    );
    expect([refused.code, refused.message]).toEqual([
      'host-down',
      expect.stringContaining('start the daemon'),
    ]);
  });
});

it('closes with a deadline though a request never ends', async () => {
  const hung = failure(
    client('unix').request({ method: 'GET', path: '/v1/wait', reply: NoReply, timeoutMs: 5000 }),
  );
  await expect.poll(() => arrivedCount).toBe(1);
  const startedAt = performance.now();
  await server.close({ deadlineMs: 100 });
  expect(performance.now() - startedAt).toBeLessThan(4000);
  expect((await hung).code).toBe('host-down');
});

it('keeps keys out of the log', () => {
  const lines: string[] = [];
  const log = createLog({ name: 'x', write: (line) => lines.push(line) });
  log.info({ keyHex: 'S1', source: { keyHex: 'S2' }, a: { b: { key: 'S3' } }, ticket: 't' }, 'hello');
  createLog({ name: 'x', pretty: true, write: (line) => lines.push(line) }).warn(
    { token: 'S4', ticket: 't' },
    'hello',
  );
  expect(lines.join('')).not.toMatch(/S\d/);
  expect(lines[1]).toMatch(/WARN {2}x: hello .*ticket=t/);
});
