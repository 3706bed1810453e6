import { once } from 'node:events';
import { setTimeout as sleep } from 'node:timers/promises';
import type { IncomingMessage } from 'node:http';
import * as http from 'node:http';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import Fastify from 'fastify';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { ControlClient, SystemEvent } from '@snowflock/protocol';
import { createControlServer, type ControlServer } from '../src/http.ts';
import { silentLog } from '../src/log.ts';
import { EventLog } from '../src/sfmd/event-log.ts';
import { registerLocalRoutes } from '../src/sfld/routes.ts';
import type { HostDaemon } from '../src/sfld/host-daemon.ts';

let stack: AsyncDisposableStack;
let events: EventLog;
let server: ControlServer;
let client: ControlClient;
let path: string;

beforeEach(async () => {
  stack = new AsyncDisposableStack();
  const dir = mkdtempSync(join(tmpdir(), 'snowflock-events-'));
  stack.defer(() => rmSync(dir, { recursive: true }));
  path = join(dir, 's.sock');
  events = new EventLog(7);
  server = await createControlServer({
    name: 'sfmd',
    log: silentLog(),
    register: (app) =>
      app.get<{ Querystring: { cluster?: string } }>(
        '/v1/events',
        { config: { roles: ['operator'] } },
        (request, reply) => {
          const { cluster } = request.query;
          const after = request.headers['last-event-id'];
          events.serve(reply.raw, {
            clusterid: cluster === undefined ? null : Number(cluster),
            after: typeof after === 'string' ? after : null,
          });
          reply.hijack();
        },
      ),
  });
  stack.defer(() => server.close({ deadlineMs: 300 }));
  stack.defer(() => events[Symbol.dispose]());
  await server.listenUnix(path);
  client = stack.use(new ControlClient({ socketPath: path }));
});
afterEach(() => stack.disposeAsync());

const open = (query = '', after?: string): Promise<IncomingMessage> =>
  client.stream({
    path: `/v1/events${query}`,
    timeoutMs: 5000,
    ...(after === undefined ? {} : { headers: { 'last-event-id': after } }),
  });

/** The next events of a stream, parsed by the schema, with their ids. What comes meanwhile waits in the stream. */
async function next(stream: IncomingMessage, count: number): Promise<[string, SystemEvent][]> {
  const found: [string, SystemEvent][] = [];
  const deadline = Date.now() + 5000;
  let text = '';
  while (found.length < count) {
    const end = text.indexOf('\n\n');
    if (end < 0) {
      const chunk = stream.read() as Buffer | null;
      if (chunk) text += chunk.toString();
      else await sleep(5);
      expect(Date.now()).toBeLessThan(deadline);
      continue;
    }
    const [, id, type, data] = /^id: (.*)\nevent: (.*)\ndata: (.*)$/.exec(text.slice(0, end)) ?? [];
    text = text.slice(end + 2);
    if (data === undefined) continue;
    const event = SystemEvent.parse(JSON.parse(data));
    expect(event.type).toBe(type);
    found.push([id ?? '', event]);
  }
  stream.unshift(Buffer.from(text));
  return found;
}
const up = (host: string): SystemEvent => ({ type: 'host-up', host });
const begun = (clusterid: number): SystemEvent => ({ type: 'fork-begun', clusterid, ticket: 't' });

describe('GET /v1/events', () => {
  it('tells everything in order from now on, or from Last-Event-ID, or of one cluster', async () => {
    events.append(up('before'));
    const stream = await open();
    for (const host of ['a', 'b']) events.append(up(host));
    events.append(begun(3));
    expect(await next(stream, 3)).toEqual([
      ['7.2', up('a')],
      ['7.3', up('b')],
      ['7.4', begun(3)],
    ]);
    stream.destroy();
    const again = await open('', '7.2');
    expect((await next(again, 2)).map(([id]) => id)).toEqual(['7.3', '7.4']);
    again.destroy();
    const one = await open('?cluster=3', '7.0');
    events.append(begun(4));
    events.append(begun(3));
    expect((await next(one, 2)).map(([id]) => id)).toEqual(['7.4', '7.6']);
    one.destroy();
  });

  it('says that there is a gap: after a restart of sfmd, and after too long an absence', async () => {
    events.append(up('a'));
    const restarted = await open('', '6.900');
    expect(await next(restarted, 2)).toEqual([
      ['7.0', { type: 'gap' }],
      ['7.1', up('a')],
    ]);
    restarted.destroy();
    for (let index = 0; index < 5000; index++) events.append(up('b'));
    const late = await open('', '7.1');
    const [gap, first] = await next(late, 2);
    expect(gap?.[1]).toEqual({ type: 'gap' });
    expect(Number(first?.[0].split('.')[1])).toBe(Number(gap?.[0].split('.')[1]) + 1);
    late.destroy();
    const strange = await open('', 'what?');
    expect((await next(strange, 1))[0]?.[1]).toEqual({ type: 'gap' });
    strange.destroy();
  });

  it('cuts off who does not read, and nobody else', async () => {
    const idle = await open();
    idle.pause();
    idle.on('error', () => undefined); // 'aborted'
    let closed = false;
    idle.on('close', () => (closed = true));
    const good = await open();
    let received = 0;
    good.on('data', (chunk: Buffer) => (received += chunk.length));
    const reason = 'x'.repeat(4000);
    let sent = 0;
    const lost: SystemEvent = { type: 'clone-lost', clusterid: 1, ticket: 't', vmid: 1, host: 'h', reason };
    for (; sent < 3000 && !idle.destroyed; sent++) {
      events.append(lost);
      if (sent % 20 === 0) await sleep(1);
      if (sent === 2000) idle.resume(); // reads what is left, to its end
    }
    await expect.poll(() => closed, { timeout: 5000 }).toBe(true);
    expect(idle.complete).toBe(false);
    await expect.poll(() => received, { timeout: 5000 }).toBeGreaterThan(sent * 4000);
    expect(good.destroyed).toBe(false);
    good.destroy();
  });

  it('is forwarded by sfld on its unix socket', async () => {
    const app = Fastify();
    stack.defer(() => app.close());
    registerLocalRoutes(app, { context: { masterDaemon: client } } as unknown as HostDaemon);
    await app.listen({ path: `${path}.sfld` });
    events.append(up('a'));
    events.append(begun(5));
    const request = http.get({
      socketPath: `${path}.sfld`,
      path: '/v1/master/events?cluster=5',
      headers: { 'last-event-id': '7.0' },
    });
    const [response] = (await once(request, 'response', { signal: AbortSignal.timeout(5000) })) as [
      IncomingMessage,
    ];
    expect(response.headers['content-type']).toBe('text/event-stream');
    expect(await next(response, 1)).toEqual([['7.2', begun(5)]]);
    events.append(begun(5));
    expect((await next(response, 1))[0]?.[0]).toBe('7.3');
    response.destroy();
  });
});
