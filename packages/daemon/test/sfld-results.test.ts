// Results on the parent's host: the store, the route that fills it, and what a wait gives the guest.

import { existsSync, mkdtempSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import {
  ControlClient,
  NoReply,
  RESULT_TYPE,
  SFLD_ROUTES,
  SnowflockError,
  StreamBody,
  type Outcome,
} from '@snowflock/protocol';
import { createControlServer } from '../src/http.ts';
import { silentLog } from '../src/log.ts';
import { serve } from '../src/serve.ts';
import { statusWord, waitClones, waitWords } from '../src/sfld/guest-results.ts';
import { ResultStore } from '../src/sfld/result-store.ts';
import { createTestCa } from './sfmd-fixture.ts';

const TICKET = 'd4d660b0-054e-4017-8393-ad04ff1c1ff7';
const OTHER = 'a939ef76-48f1-4d5c-aae1-0529bd1044f4';
const OWNER = { clusterid: 7, vmid: 0 };
const log = silentLog();
let directory: string;
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'sf-results-'));
});
afterEach(() => rmSync(directory, { recursive: true, force: true }));

function newStore(limits = { cloneBytes: 1000, ticketBytes: 1500 }): ResultStore {
  return new ResultStore({ host: 'h1', stateDir: directory, limits, log });
}

async function opened(store = newStore()): Promise<ResultStore> {
  const clones = [1, 2, 3].map((vmid) => ({ vmid, host: vmid === 3 ? 'h3' : 'h2' }));
  await store.open({ ticket: TICKET, ...OWNER, clones });
  return store;
}

const put = (store: ResultStore, vmid: number, data: string, announced = data.length): Promise<void> =>
  store.put(
    { ticket: TICKET, vmid },
    { status: vmid, sizeBytes: announced, source: Readable.from([Buffer.from(data)]) },
  );

async function codeOf(work: Promise<unknown>): Promise<string> {
  return work.then(
    () => 'none',
    (error: unknown) => (error instanceof SnowflockError ? error.code : String(error)),
  );
}

const files = (): string[] => readdirSync(join(directory, 'results'), { recursive: true }).map(String).sort();

async function contents(store: ResultStore, vmid: number): Promise<string> {
  await using reader = store.read(TICKET, OWNER);
  await using file = await reader?.open(vmid);
  return (await file?.readFile('utf8')) ?? '';
}

describe('the store', () => {
  it('keeps what clones exit with, for their owner alone, and the next sfld finds it', async () => {
    const store = await opened();
    await put(store, 1, 'one');
    await put(store, 1, 'another');
    await put(store, 2, 'two');
    expect(statSync(join(directory, 'results', TICKET, '2_2')).mode & 0o777).toBe(0o600);
    writeFileSync(join(directory, 'results', TICKET, '3.part'), 'half');
    const next = newStore();
    expect(files()).toEqual([TICKET, `${TICKET}/1_1`, `${TICKET}/2_2`, `${TICKET}/box.json`]);
    const reader = next.read(TICKET, OWNER);
    expect([...(reader?.results ?? [])]).toEqual([
      [1, { status: 1, sizeBytes: 7 }],
      [2, { status: 2, sizeBytes: 3 }],
    ]);
    expect(await contents(next, 1)).toBe('another');
    for (const stranger of [
      { clusterid: 7, vmid: 1 },
      { clusterid: 8, vmid: 0 },
    ])
      expect(next.read(TICKET, stranger)).toBeNull();
    await reader?.[Symbol.asyncDispose]();
    await next.remove(TICKET);
    await next.remove(TICKET);
    expect(files()).toEqual([]);
  });

  it('takes no more than a clone, and a ticket, may return', async () => {
    const store = await opened();
    expect(await codeOf(put(store, 1, 'x'.repeat(1001)))).toBe('result-too-large');
    await put(store, 1, 'x'.repeat(1000));
    await expect(put(store, 2, 'x'.repeat(501))).rejects.toThrow(
      '501 bytes are more than the 500 that are left of the 1500',
    );
    await put(store, 2, 'x'.repeat(500));
    await put(store, 1, 'x'.repeat(999)); // its own does not count twice
    await put(store, 3, 'x');
    expect(await codeOf(put(store, 3, 'xx'))).toBe('result-too-large');
    await store.drop({ ticket: TICKET, vmid: 2 });
    await store.drop({ ticket: TICKET, vmid: 2 });
    await put(store, 3, 'x'.repeat(501));
  });

  it('stores nothing of a result that is not what was announced, or breaks off', async () => {
    const store = await opened();
    expect(await codeOf(put(store, 1, 'four', 5))).toBe('bad-request');
    expect(await codeOf(put(store, 1, 'four', 3))).toBe('bad-request');
    const broken = new Readable({ read: () => undefined });
    const work = store.put({ ticket: TICKET, vmid: 1 }, { status: 0, sizeBytes: 9, source: broken });
    expect(await codeOf(put(store, 1, 'again'))).toBe('busy');
    broken.destroy(new Error('reset'));
    expect(await codeOf(work)).toBe('unavailable');
    expect(files()).toEqual([TICKET, `${TICKET}/box.json`]);
    await put(store, 1, 'again');
  });

  it('keeps a box that is being read, though it is removed; the next sfld does not', async () => {
    const store = await opened();
    await put(store, 1, 'one');
    const reader = store.read(TICKET, OWNER);
    const other = store.read(TICKET, OWNER);
    await store.remove(TICKET);
    expect(store.read(TICKET, OWNER)).toBeNull();
    await using file = await reader?.open(1);
    expect(await file?.readFile('utf8')).toBe('one');
    await reader?.[Symbol.asyncDispose]();
    await reader?.[Symbol.asyncDispose]();
    expect(files()).not.toEqual([]);
    newStore();
    expect(files()).toEqual([]);
    await other?.[Symbol.asyncDispose]();
  });

  it('removes what is of VMs that are not here', async () => {
    const store = await opened();
    await store.open({ ticket: OTHER, clusterid: 8, vmid: 0, clones: [] });
    expect(store.ticketsOf(8)).toEqual([OTHER]);
    await store.sweep(({ clusterid }) => clusterid === 7);
    expect(files()).toEqual([TICKET, `${TICKET}/box.json`]);
  });
});

describe('the route', () => {
  it('takes a result from the host of the clone alone, as a stream', async () => {
    using ca = createTestCa();
    const store = await opened(newStore({ cloneBytes: 1 << 26, ticketBytes: 1 << 27 }));
    await using server = await createControlServer({
      name: 'sfld',
      log,
      register: (app) =>
        serve(app, SFLD_ROUTES.putResult, ({ params, query, body, peer }) => {
          store.assertMayPut(params.ticket, params.vmid, peer.isHost);
          return store.put(params, { status: query.status, sizeBytes: query.bytes, source: body });
        }),
    });
    const { port } = await server.listenTls({
      address: '127.0.0.1',
      port: 0,
      tls: ca.issue('h1', '127.0.0.1'),
    });
    const size = 20 << 20;
    const send = async (host: string, path: string, sizeBytes = size): Promise<string> => {
      using client = new ControlClient({ address: '127.0.0.1', port, tls: ca.issue(host), host: 'h1' });
      const open = (): Readable => Readable.from(zeroes(sizeBytes));
      const body = new StreamBody({ contentType: RESULT_TYPE, sizeBytes, open });
      return await codeOf(client.request({ method: 'PUT', path, body, reply: NoReply, timeoutMs: 20_000 }));
    };
    const path = (vmid: number, bytes = size, ticket = TICKET): string =>
      `/v1/tickets/${ticket}/results/${vmid}?status=-3&bytes=${bytes}`;
    expect(await send('h2', path(1))).toBe('none');
    expect(statSync(join(directory, 'results', TICKET, '1_-3')).size).toBe(size);
    expect(await send('h2', path(3))).toBe('unauthorized');
    expect(await send('h2', path(4))).toBe('no-such-vm');
    expect(await send('h2', path(1, size, OTHER))).toBe('no-such-ticket');
    expect(await send('h2', path(1, size - 1))).toBe('bad-request');
    expect(await send('h2', path(2, (1 << 26) + 1))).toBe('result-too-large');
    expect(await send('h2', '/v1/tickets/x/results/1?status=0&bytes=1')).toBe('no-such-ticket');
    for (const query of [
      '',
      '?status=0',
      '?status=99999999999&bytes=1',
      '?status=0&bytes=0',
      '?status=0&bytes=-1',
    ])
      expect(await send('h2', `/v1/tickets/${TICKET}/results/2${query}`)).toBe('bad-request');
    expect(existsSync(join(directory, 'results', TICKET, '2_-3'))).toBe(false);
  });
});

function* zeroes(sizeBytes: number): Generator<Buffer> {
  for (let left = sizeBytes; left > 0; left -= 65536) yield Buffer.alloc(Math.min(left, 65536));
}

describe('a wait', () => {
  async function waited(
    store: ResultStore,
    clones: readonly Outcome[],
  ): Promise<{ text: string; bytes: string }> {
    const masterDaemon = { request: async () => ({ clones }) } as unknown as ControlClient;
    const options = { signal: new AbortController().signal, timeoutMs: 1000 };
    const wait = { vm: OWNER, host: 'h1', masterDaemon, results: store };
    const { text, bytes } = await waitClones(wait, TICKET, waitWords(['-', '-', '-', '-']), options);
    const parts: Buffer[] = [];
    for await (const part of bytes ?? []) parts.push(part);
    return { text, bytes: Buffer.concat(parts).toString() };
  }
  const outcome = (vmid: number, more: Partial<Outcome>): Outcome => ({
    ...{ vmid, how: 'exited', status: 0, reason: 'ic_exit', resultBytes: 0 },
    ...more,
  });

  it('gives a record of each clone, with its result behind', async () => {
    const store = await opened();
    await put(store, 1, 'one\n');
    const records = '1 exited 1 4 ic_exit\none\n2 ended -1 0 it had to\n3 lost -1 0 QEMU said: two lines\n';
    expect(
      await waited(store, [
        outcome(1, { status: 1, resultBytes: 4 }),
        outcome(2, { how: 'ended', status: null, reason: 'it had to' }),
        outcome(3, { how: 'lost', status: null, reason: 'QEMU said: two\nlines' }),
      ]),
    ).toEqual({ text: `ok 3 +${records.length}`, bytes: records });
  });

  it('gives what a clone had said before it was lost, and does not hide that a result is missing', async () => {
    const store = await opened();
    await put(store, 2, 'two');
    const { bytes } = await waited(store, [
      outcome(1, { status: 4, resultBytes: 9 }),
      outcome(2, { how: 'lost', status: null, reason: 'host h2 stopped answering' }),
    ]);
    expect(bytes).toBe(
      '1 lost -1 0 it exited with status 4 and 9 bytes of result, which host h1 does not have any more\n' +
        '2 exited 2 3 ic_exit; it was lost then: host h2 stopped answering\ntwo',
    );
  });

  it('takes limits as words', () => {
    expect(waitWords(['3', '500', '-', '1000000'])).toEqual({
      count: 3,
      deadlineMs: 500,
      budgetMs: null,
      budgetBytes: 1000000,
    });
    expect(waitWords(['-', '0', '0', '0'])).toMatchObject({ count: null, deadlineMs: 0 });
    for (const wrong of [
      [],
      ['-', '-', '-'],
      ['-', '-', '-', '-', '-'],
      ['0', '-', '-', '-'],
      ['-1', '-', '-', '-'],
      ['-', '1.5', '-', '-'],
      ['-', 'x', '-', '-'],
      ['', '-', '-', '-'],
    ])
      expect(() => waitWords(wrong), wrong.join()).toThrow(SnowflockError);
    expect([undefined, '0', '-3', '2147483647'].map(statusWord)).toEqual([0, 0, -3, 2147483647]);
    for (const wrong of ['', 'x', '1.5', '2147483648', '1e3'])
      expect(() => statusWord(wrong)).toThrow('32 bits');
  });
});
