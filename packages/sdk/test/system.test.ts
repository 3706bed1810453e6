import { createServer, type Server, type ServerResponse } from 'node:http';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { PassThrough } from 'node:stream';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import type { SystemState } from '@snowflock/protocol';
import { findSocket, SnowflockError, System } from '../src/index.ts';
import { hostOf } from '../src/reach.ts';
import { startFakeSfld, type FakeSfld } from './fake-sfld.ts';

const T = 'd4d660b0-054e-4017-8393-ad04ff1c1ff7';
const SEEDED = { clusterid: 3, vmid: 0, host: 'host1', ip: '10.0.0.1' };
const STATE = {
  hosts: [
    { host: 'host1', address: '10.231.0.1', sfldPort: 49183, up: true },
    { host: 'host2', address: null, sfldPort: null, up: false },
  ],
  clusters: [
    {
      clusterid: 3,
      vms: [
        { vmid: 0, host: 'host1' },
        { vmid: 1, host: 'host2' },
      ],
    },
  ],
} as unknown as SystemState;

describe('which sfld', () => {
  it('is the one that is named, that of the environment, or that of this machine', () => {
    expect(findSocket({ named: '/a', env: '/b', exists: () => true })).toBe('/a');
    expect(findSocket({ env: '/b', exists: () => true })).toBe('/b');
    expect(findSocket({ env: '', exists: () => true })).toBe('/run/snowflock/sfld.sock');
    expect(findSocket({ further: ['/c'], exists: (path) => path === '/c' })).toBe('/c');
    expect(() => findSocket({ exists: () => false })).toThrow(
      /no sfld runs here.*sfld start.*lab up.*--socket/s,
    );
  });

  it('is, from elsewhere, that of the host of the VM', () => {
    expect(hostOf(STATE, { clusterid: 3, vmid: 0 })).toEqual({
      host: 'host1',
      address: '10.231.0.1',
      port: 49183,
    });
    const code = (vm: { clusterid: number; vmid: number }): string => {
      try {
        return JSON.stringify(hostOf(STATE, vm));
      } catch (error) {
        return error instanceof SnowflockError ? error.code : String(error);
      }
    };
    expect(code({ clusterid: 3, vmid: 1 })).toBe('host-down');
    expect(code({ clusterid: 3, vmid: 2 })).toBe('no-such-vm');
    expect(code({ clusterid: 4, vmid: 0 })).toBe('no-such-vm');
  });
});

describe('a system', () => {
  let fake: FakeSfld;
  let system: System;
  beforeEach(async () => {
    fake = await startFakeSfld();
    system = System.connect({ socketPath: fake.socketPath });
  });
  afterEach(async () => {
    system.close();
    await fake[Symbol.asyncDispose]();
  });
  const reply = (request: string, body?: unknown, status = body === undefined ? 204 : 200): void =>
    void fake.replies.set(request, { status, body });
  const cluster = '/v1/master/clusters/3';

  it('seeds, of a shape or of a file, and ends what it seeded', async () => {
    reply('POST /v1/master/clusters', SEEDED);
    reply(`DELETE ${cluster}?force=1`);
    {
      await using master = await system.seed({ diskImage: 'micro', vcpus: 1, memoryMib: 96 });
      expect([master.name, master.host, master.ip, master.clone(2).name]).toEqual([
        '3:0',
        'host1',
        '10.0.0.1',
        '3:2',
      ]);
    }
    const dir = mkdtempSync('/tmp/sfsdk-');
    try {
      writeFileSync(join(dir, 'seed.cfg'), 'disk_image = "debian"\nvcpus = 2\nmemory = 256\n');
      await using _master = await system.seedFrom(join(dir, 'seed.cfg'));
      await expect(system.seedFrom(join(dir, 'none.cfg'))).rejects.toThrow(SnowflockError);
    } finally {
      rmSync(dir, { recursive: true });
    }
    expect(fake.requests).toEqual([
      'POST /v1/master/clusters {"diskImage":"micro","vcpus":1,"memoryMib":96}',
      `DELETE ${cluster}?force=1`,
      'POST /v1/master/clusters {"diskImage":"debian","vcpus":2,"memoryMib":256}',
      `DELETE ${cluster}?force=1`,
    ]);
  });

  it('does not mind that a cluster is gone when it is disposed of, but minds that it cannot end it', async () => {
    reply('POST /v1/master/clusters', SEEDED);
    const shape = { diskImage: 'micro', vcpus: 1, memoryMib: 96 };
    {
      await using _gone = await system.seed(shape); // the fake knows no such cluster
    }
    const stuck = await system.seed(shape);
    reply(`DELETE ${cluster}?force=1`, { error: { code: 'host-down', message: 'host1 is down' } }, 503);
    await expect(stuck[Symbol.asyncDispose]()).rejects.toMatchObject({ code: 'host-down' });
  });

  it('has every call of a cluster', async () => {
    reply('POST /v1/master/clusters', SEEDED);
    const master = await system.seed({ diskImage: 'micro', vcpus: 1, memoryMib: 96 });
    fake.requests.length = 0;
    reply(`POST ${cluster}/tickets`, { ticket: T, allowed: 2 });
    reply(`GET ${cluster}/tickets`, { unused: [T], outstanding: [] });
    reply(`GET ${cluster}/tickets/${T}`, { ticket: T, clones: [{ vmid: 1, processors: 2 }] });
    for (const call of [
      `DELETE ${cluster}/tickets/${T}`,
      `POST ${cluster}/tickets/${T}/merge`,
      `POST ${cluster}/merge`,
      `POST ${cluster}/tickets/${T}/join`,
      `DELETE ${cluster}`,
    ])
      reply(call);
    expect(await master.requestTicket(2)).toEqual({ ticket: T, allowed: 2 });
    await master.requestTicket(5, { procs: true, min: 1, block: false });
    expect(await master.tickets()).toEqual({ unused: [T], outstanding: [] });
    expect(await master.clonesOf(T)).toEqual([{ vmid: 1, processors: 2 }]);
    await master.disposeTicket(T);
    await master.merge(T);
    await master.mergeAll();
    await master.join(T);
    await master.shutdown();
    await expect(master.merge('a/../b')).rejects.toMatchObject({ code: 'no-such-cluster' });
    expect(fake.requests).toEqual([
      `POST ${cluster}/tickets {"nclones":2,"procs":false,"min":-1,"block":true}`,
      `POST ${cluster}/tickets {"nclones":5,"procs":true,"min":1,"block":false}`,
      `GET ${cluster}/tickets`,
      `GET ${cluster}/tickets/${T}`,
      `DELETE ${cluster}/tickets/${T}`,
      `POST ${cluster}/tickets/${T}/merge`,
      `POST ${cluster}/merge`,
      `POST ${cluster}/tickets/${T}/join`,
      `DELETE ${cluster}`,
      `POST ${cluster}/tickets/a%2F..%2Fb/merge`,
    ]);
  });

  it('runs commands, collected and on streams', async () => {
    const vm = system.vm('0:1');
    const { status, stdout } = await vm.exec(['sh', '-c', 'cat; exit 3'], { input: 'text' });
    expect([status, stdout.toString()]).toEqual([3, 'text']);
    const out = new PassThrough();
    const handle = await vm.start({ argv: ['echo', 'streamed'], stdin: null, stdout: out, stderr: out });
    expect(await handle.exited).toBe(0);
    expect((out.read() as Buffer).toString()).toBe('streamed\n');
    await expect(vm.exec(['sleep', '60'], { signal: AbortSignal.timeout(200) })).rejects.toMatchObject({
      code: 'interrupted',
    });
    await expect(vm.exec([])).rejects.toMatchObject({ code: 'bad-request' });
    await expect(system.vm('9:9').exec(['true'])).rejects.toMatchObject({ code: 'no-such-vm' });
    expect(() => system.vm('nine')).toThrow(/does not name a VM/);
  });
});

describe('events', () => {
  let dir: string;
  let server: Server;
  const asked: (readonly [url: string | undefined, lastId: string | string[] | undefined])[] = [];
  let serve: (response: ServerResponse, connection: number) => void;
  let system: System;
  const event = (id: string, vmid: number): string => {
    const data = { type: 'clone-running', clusterid: 0, ticket: T, vmid, host: 'host1' };
    return `id: ${id}\nevent: clone-running\ndata: ${JSON.stringify(data)}\n\n`;
  };
  beforeEach(async () => {
    dir = mkdtempSync('/tmp/sfev-');
    asked.length = 0;
    server = createServer((request, response) => {
      asked.push([request.url, request.headers['last-event-id']]);
      response.writeHead(200, { 'content-type': 'text/event-stream' });
      response.write(':\n\n');
      serve(response, asked.length);
    });
    await new Promise<void>((resolve) => server.listen(join(dir, 'sock'), resolve));
    system = System.connect({ socketPath: join(dir, 'sock') });
  });
  afterEach(async () => {
    system.close();
    server.closeAllConnections();
    await new Promise((resolve) => server.close(resolve));
    rmSync(dir, { recursive: true });
  });

  it('come in order however they are cut up, and go on where a connection broke off', async () => {
    serve = (response, connection) => {
      if (connection > 1) return void response.write(event('7.3', 3));
      const text = event('7.1', 1) + event('7.2', 2);
      response.write(text.slice(0, 20));
      setTimeout(() => response.write(text.slice(20)), 20);
      setTimeout(() => response.destroy(), 60);
    };
    await using events = await system.events({ clusterid: 0 });
    const vmids: number[] = [];
    for await (const each of events) {
      if (each.type === 'clone-running') vmids.push(each.vmid);
      if (vmids.length === 3) break;
    }
    expect(vmids).toEqual([1, 2, 3]);
    expect(asked).toEqual([
      ['/v1/master/events?cluster=0', undefined],
      ['/v1/master/events?cluster=0', '7.2'],
    ]);
  });

  it('end when their signal aborts, also while nothing happens', async () => {
    serve = () => undefined;
    await using events = await system.events({ signal: AbortSignal.timeout(200) });
    for await (const each of events) throw new Error(`nothing happened, but: ${each.type}`);
  });

  it('that make no sense are an error', async () => {
    serve = (response) => response.write('id: 1\ndata: {"type":"what"}\n\n');
    await using events = await system.events();
    await expect(events[Symbol.asyncIterator]().next()).rejects.toMatchObject({ code: 'unavailable' });
    expect(asked.length).toBe(1);
  });
});
