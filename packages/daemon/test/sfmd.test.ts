import type { FastifyInstance } from 'fastify';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { z } from 'zod';
import {
  ControlClient,
  NoReply,
  parseSfmdConfig,
  RedeemReply,
  SeedReply,
  SnowflockError,
  SystemState,
  TicketGrant,
  TicketInfo,
  TicketList,
  type TlsIdentity,
} from '@snowflock/protocol';
import { seededRandom, type SystemData } from '@snowflock/cluster';
import { createControlServer, type ControlServer } from '../src/http.ts';
import { silentLog } from '../src/log.ts';
import { Certificates } from '../src/sfmd/certificates.ts';
import { HostClients } from '../src/sfmd/hosts.ts';
import { MasterDaemon, type MasterDaemonOptions } from '../src/sfmd/master-daemon.ts';
import { SfmdMetrics } from '../src/sfmd/metrics.ts';
import { registerRoutes } from '../src/sfmd/routes.ts';
import { Store, type StateStore } from '../src/sfmd/store.ts';
import { createTestCa, type TestCa } from './sfmd-fixture.ts';
import { FakeHost } from './sfmd-peer.ts';

const SHAPE = { diskImage: 'micro', vcpus: 1, memoryMib: 256 };
const NAMES = ['host1', 'host2', 'host3'];
let ca: TestCa;
const identities = new Map<string, TlsIdentity>();
let stack: AsyncDisposableStack;
let daemon: MasterDaemon;
let server: ControlServer;
let port: number;
let hosts: FakeHost[];
let nowMs = 0;
let store: FullDisk;

/** The store, on a disk that may be full. */
class FullDisk implements StateStore {
  readonly #store: Store;
  isFull = false;

  constructor(real: Store) {
    this.#store = real;
  }

  committed(): SystemData {
    return this.#store.committed();
  }

  commit(system: SystemData): void {
    if (this.isFull) throw new SnowflockError('unavailable', 'the disk is full');
    this.#store.commit(system);
  }
}

beforeAll(() => {
  ca = createTestCa();
  for (const name of ['master', ...NAMES]) identities.set(name, ca.issue(name));
});
afterAll(() => ca[Symbol.dispose]());

const tlsOf = (name: string): TlsIdentity => {
  const tls = identities.get(name);
  if (!tls) throw new Error(name);
  return tls;
};

beforeEach(() => bringUp());

async function bringUp(options: Pick<MasterDaemonOptions, 'compress'> = {}): Promise<void> {
  stack = new AsyncDisposableStack();
  nowMs = 0;
  const dir = mkdtempSync(join(tmpdir(), 'snowflock-sfmd-'));
  stack.defer(() => rmSync(dir, { recursive: true }));
  const config = parseSfmdConfig(
    `cluster_hosts = [${NAMES.map((host) => `{'host': '${host}', 'cpus': 2, 'RAM': 1<<30}`).join(', ')}]
authority_dir = '${ca.dir}/none'`,
    'sfmd.cfg',
  );
  const log = silentLog();
  store = new FullDisk(stack.use(Store.open(join(dir, 'state.db'))));
  daemon = new MasterDaemon({
    store,
    capacities: config.clusterHosts,
    clusterid: config.clusterid,
    limits: config.limits,
    hosts: new HostClients(tlsOf('master')),
    log,
    random: seededRandom(1),
    nowMs: () => nowMs,
    unixMs: () => nowMs,
    ...options,
  });
  const metrics = new SfmdMetrics(() => daemon.system);
  const certificates = await Certificates.open({ config, tls: tlsOf('master'), log });
  const register = (app: FastifyInstance): void => registerRoutes(app, daemon, metrics, certificates);
  server = await createControlServer({ name: 'sfmd', log, register });
  stack.defer(() => server.close({ deadlineMs: 200 }));
  stack.use(daemon);
  ({ port } = await server.listenTls({ address: '127.0.0.1', port: 0, tls: tlsOf('master') }));
  hosts = NAMES.map((name) => stack.use(new FakeHost(name, tlsOf(name), port)));
  for (const host of hosts) {
    await host.listen();
    await host.report();
  }
}
afterEach(() => stack.disposeAsync());

interface Ask<T> {
  readonly body?: unknown;
  readonly reply?: z.ZodType<T>;
  readonly signal?: AbortSignal;
}
function ask<T = unknown>(line: string, { body, reply, signal }: Ask<T> = {}): Promise<T> {
  const [method, path = ''] = line.split(' ') as ['GET' | 'PUT' | 'POST' | 'DELETE', string?];
  return hostOf(speakerFor(path)).sfmd.request<T>({
    method,
    path: `/v1${path}`,
    body,
    reply: reply ?? (z.unknown() as z.ZodType<T>),
    timeoutMs: 30_000,
    ...(signal ? { signal } : {}),
  });
}
/** The host that may ask: the one with that VM, or with the master VM; for what concerns nobody, host1. */
function speakerFor(path: string): string {
  const [, clusterid = '', vmid = '0'] = /^\/clusters\/(\d+)(?:\/vms\/(\d+))?/.exec(path) ?? [];
  return daemon.system.clusters[Number(clusterid)]?.vms[vmid]?.host ?? 'host1';
}
const fails = async (promise: Promise<unknown>): Promise<string> => {
  const error: unknown = await promise.then(
    (value) => new Error(`no error: ${JSON.stringify(value)}`),
    (thrown: unknown) => thrown,
  );
  return error instanceof SnowflockError ? `${error.code}: ${error.message}` : String(error);
};
const seed = () => ask('POST /clusters', { body: SHAPE, reply: SeedReply });
const request = (nclones: number, more: { min?: number; block?: boolean; signal?: AbortSignal } = {}) =>
  ask('POST /clusters/0/tickets', {
    body: { nclones, procs: false, min: more.min ?? 0, block: more.block ?? false },
    reply: TicketGrant,
    ...(more.signal ? { signal: more.signal } : {}),
  });
const state = () => ask('GET /state', { reply: SystemState });
const at = (ticket: string | null, verb = ''): string => `/clusters/0/tickets/${ticket ?? ''}${verb}`;
const free = async (): Promise<number> => (await state()).hosts.reduce((sum, host) => sum + host.cpusFree, 0);
const hostOf = (name: string): FakeHost => {
  const found = hosts.find((each) => each.host === name);
  if (!found) throw new Error(name);
  return found;
};
async function fork(nclones: number): Promise<string> {
  const { ticket } = await request(nclones);
  const { clones } = await ask(`POST ${at(ticket, '/redeem')}`, { reply: RedeemReply });
  await ask(`POST ${at(ticket, '/launched')}`, {
    body: { clones: clones.map(({ vmid }) => ({ vmid, ok: true })) },
  });
  return ticket ?? '';
}

describe('a cluster from seed to shutdown', () => {
  it('prepares at the grant, redeems once, joins, merges, and leaves nothing', async () => {
    const seeded = await seed();
    expect(seeded).toMatchObject({ clusterid: 0, vmid: 0, ip: '10.0.0.1' });
    expect(hostOf(seeded.host).masters).toEqual(new Set([0]));

    const { ticket, allowed } = await request(4);
    expect(allowed).toBe(4);
    const { clones, failed } = await ask(`POST ${at(ticket, '/redeem')}`, { reply: RedeemReply });
    expect([clones.map((clone) => clone.vmid).sort(), failed]).toEqual([[1, 2, 3, 4], []]);
    expect(new Set(clones.map((clone) => clone.host)).size).toBe(3);
    expect(hostOf(seeded.host).sources.has(ticket ?? '')).toBe(true);
    for (const clone of clones)
      expect(
        hostOf(clone.host)
          .tickets.get(ticket ?? '')
          ?.clones.map((each) => each.vmid),
      ).toContain(clone.vmid);
    expect(await fails(ask(`POST ${at(ticket, '/redeem')}`))).toMatch(/^ticket-used: /);
    await ask(`POST ${at(ticket, '/launched')}`, {
      body: { clones: clones.map(({ vmid }) => ({ vmid, ok: true })) },
    });

    expect(await ask('GET /clusters/0/tickets', { reply: TicketList })).toEqual({
      unused: [],
      outstanding: [ticket],
    });
    expect((await ask(`GET ${at(ticket)}`, { reply: TicketInfo })).clones).toHaveLength(4);
    expect(await fails(ask('DELETE /clusters/0'))).toMatch(/^tickets-outstanding: /);

    let joined = false;
    const join = ask(`POST ${at(ticket, '/join')}`, { reply: NoReply }).then(() => (joined = true));
    for (const { vmid } of clones) {
      expect(joined).toBe(false);
      await ask(`POST /clusters/0/vms/${vmid}/ended`, { body: { how: 'exited', reason: '' } });
    }
    await join;
    expect([hosts.flatMap((host) => [...host.tickets]), await free()]).toEqual([[], 5]);

    await ask('DELETE /clusters/0');
    expect((await state()).clusters).toEqual([]);
    expect([hosts.every((host) => host.empty), await free()]).toEqual([true, 6]);
    expect((await seed()).clusterid).toBe(1);
  });

  it.each([undefined, true, false])('tells hosts whether pages may come compressed: %s', async (compress) => {
    await stack.disposeAsync();
    await bringUp(compress === undefined ? {} : { compress });
    await seed();
    await fork(3);
    const told = hosts.flatMap((host) => [...host.tickets.values()].map((body) => body.compress));
    expect(told).toEqual([1, 2, 3].map(() => compress ?? true));
  });

  it('merges one and all, disposes, and tells tickets apart', async () => {
    await seed();
    await seed();
    const used = await fork(2);
    const { ticket: unused } = await request(1);
    expect(await fails(ask(`POST ${at(unused, '/merge')}`))).toMatch(/^ticket-unused: /);
    expect(await fails(ask(`POST ${at(unused, '/join')}`))).toMatch(/^ticket-unused: /);
    expect(await fails(ask(`DELETE ${at(used)}`))).toMatch(/^ticket-used: /);
    expect(await fails(ask(`POST /clusters/1/tickets/${used}/merge`))).toMatch(/^no-such-ticket: /);
    expect(await fails(ask(`POST /clusters/1/tickets/abc/redeem`))).toMatch(/^no-such-ticket: 'abc'/);
    expect(await fails(ask(`POST /clusters/9/tickets/${used}/merge`))).toMatch(/^no-such-cluster: /);
    await ask(`DELETE ${at(unused)}`);
    expect(await fails(ask(`POST ${at(unused, '/redeem')}`))).toMatch(/^ticket-disposed: /);
    await ask(`POST ${at(used, '/merge')}`);
    await ask(`POST ${at(used, '/merge')}`);
    await fork(1);
    await request(1);
    await ask('POST /clusters/0/merge');
    expect(hosts.flatMap((host) => [...host.tickets.keys(), ...host.sources.keys()])).toEqual([]);
    expect(await free()).toBe(4);
  });

  it('lets a guest that shuts down power itself off', async () => {
    const { host } = await seed();
    await ask('DELETE /clusters/0?by=guest');
    expect(hostOf(host).masters.size).toBe(1);
    await ask('POST /clusters/0/vms/0/ended', { body: { how: 'powered-off', reason: '' } });
    await expect.poll(async () => (await state()).clusters).toEqual([]);
    expect(hostOf(host).empty).toBe(true);
  });

  it('names what is wrong with a request', async () => {
    await seed();
    expect(
      await fails(
        ask('POST /clusters/0/tickets', { body: { nclones: 0, procs: false, min: 0, block: false } }),
      ),
    ).toMatch(/^bad-request: body.nclones/);
    expect(await fails(ask('POST /clusters/x/merge'))).toMatch(/^bad-request: path.clusterid/);
    expect(await fails(ask('POST /clusters', { body: { ...SHAPE, memoryMib: 4096 } }))).toMatch(
      /^no-resources: no host is large enough/,
    );
    expect(await fails(request(6, { block: true, min: -1 }))).toMatch(/^no-resources: /);
  });
});

it('does nothing that it cannot store, and leaves nothing when the disk fills up in the middle of a seed', async () => {
  await seed();
  for (const host of hosts) host.behaviour.onMaster = () => (store.isFull = true);
  expect(await fails(seed())).toMatch(/^unavailable: .*the disk is full/);
  expect(await fails(request(1))).toMatch(/^unavailable: .*the disk is full/);
  expect((await state()).clusters[0]?.tickets).toEqual([]);
  store.isFull = false;
  await expect.poll(async () => (await state()).clusters.length, { timeout: 10_000 }).toBe(1);
  expect(hosts.reduce((sum, host) => sum + host.masters.size, 0)).toBe(1);
  expect(await request(1)).toMatchObject({ allowed: 1 });
});

it('tells what happens, in order, to whoever reads the events', async () => {
  const stream = await hosts[1]?.sfmd.stream({ path: '/v1/events?cluster=0', timeoutMs: 5000 });
  const types: string[] = [];
  stream?.on('data', (chunk: Buffer) =>
    types.push(...[...chunk.toString().matchAll(/^event: (.*)$/gm)].map(([, type]) => type ?? '')),
  );
  await seed();
  const ticket = await fork(1);
  await ask('POST /clusters/0/vms/1/ended', { body: { how: 'exited', reason: 'ic_exit' } });
  await ask(`POST ${at(ticket, '/merge')}`);
  await ask('DELETE /clusters/0');
  await expect
    .poll(() => types, { timeout: 5000 })
    .toEqual([
      ...['cluster-started', 'ticket-granted', 'fork-begun', 'clone-running', 'clone-exited'],
      ...['ticket-ended', 'cluster-ended'],
    ]);
  stream?.destroy();
});

describe('when hosts fail', () => {
  it('carries the reason of a master VM that could not start', async () => {
    for (const host of hosts) host.behaviour.failMaster = "there is no image 'micro'";
    expect(await fails(seed())).toMatch(
      /^no-such-image: host host\d could not start the master VM: there is no image 'micro'/,
    );
    await expect.poll(async () => (await state()).clusters).toEqual([]);
    expect(await free()).toBe(6);
  });

  it('grants at once, and reports clones that could not be prepared when the ticket is redeemed', async () => {
    const { host: masterHost } = await seed();
    const bad = hosts.find((host) => host.host !== masterHost);
    for (const host of hosts) host.behaviour.clonesDelayMs = 2000;
    if (bad) bad.behaviour.failClones = 'no /dev/fuse';
    const startedAt = performance.now();
    const { ticket } = await request(5);
    expect(performance.now() - startedAt).toBeLessThan(2000);
    const { clones, failed } = await ask(`POST ${at(ticket, '/redeem')}`, { reply: RedeemReply });
    expect([clones.length, failed.map((each) => each.reason)]).toEqual([
      3,
      Array(2).fill(`host ${bad?.host ?? ''} could not prepare it: no /dev/fuse`),
    ]);

    for (const host of hosts) host.behaviour.failClones = 'disk full';
    await ask(`POST ${at(ticket, '/merge')}`);
    const second = await request(5);
    expect(await fails(ask(`POST ${at(second.ticket, '/redeem')}`))).toMatch(/^fork-failed: .*disk full/);
    await expect.poll(free).toBe(5);
  });

  it('does not hang a merge on a host that fails, holds its resources, and retries', async () => {
    const { host: masterHost } = await seed();
    const ticket = await fork(5);
    const bad = hosts.find((host) => host.host !== masterHost);
    if (!bad) throw new Error('no other host');
    bad.behaviour.failDestroy = 'umount hangs';
    await ask(`POST ${at(ticket, '/merge')}`);
    expect(await free()).toBe(3);
    expect(await request(5)).toMatchObject({ allowed: 3 });
    bad.behaviour.failDestroy = '';
    await expect.poll(() => bad.tickets.size, { timeout: 5000 }).toBe(0);
    await expect.poll(free, { timeout: 5000 }).toBe(2);
  });

  it('reports the clones of a silent host lost, ends their join, and cleans up when it is back', async () => {
    const { host: masterHost } = await seed();
    const ticket = await fork(5);
    const gone = hosts.find((host) => host.host !== masterHost);
    if (!gone) throw new Error('no other host');
    const join = ask(`POST ${at(ticket, '/join')}`, { reply: NoReply });
    nowMs = 60_000;
    for (const host of hosts) if (host !== gone) await host.report();
    await expect
      .poll(async () => (await state()).hosts.filter((host) => !host.up).map((host) => host.host), {
        timeout: 5000,
      })
      .toEqual([gone.host]);
    const [cluster] = (await state()).clusters;
    const lost = cluster?.vms.filter((vm) => vm.status === 'lost') ?? [];
    expect(lost.map((vm) => vm.host)).toEqual([gone.host, gone.host]);
    expect(lost[0]?.reason).toContain('stopped answering');
    for (const vm of cluster?.vms ?? [])
      if (vm.vmid !== 0 && vm.status === 'running')
        await ask(`POST /clusters/0/vms/${vm.vmid}/ended`, { body: { how: 'exited', reason: '' } });
    await join;
    expect([gone.tickets.size, await free()]).toEqual([1, 3]);
    await gone.report();
    await expect.poll(free, { timeout: 5000 }).toBe(5);
    expect(gone.tickets.size).toBe(0);
  });

  it('never destroys a ticket before its preparation has ended', async () => {
    const { host: masterHost } = await seed();
    for (const host of hosts) host.behaviour.clonesDelayMs = 300;
    const { ticket } = await request(5);
    await ask(`DELETE ${at(ticket)}`);
    expect(hosts.filter((host) => host.host !== masterHost).every((host) => host.empty)).toBe(true);
    expect(await free()).toBe(5);
  });
});

describe('callers that go away', () => {
  it('cancels a blocked request, in whose place the next is served', async () => {
    await seed();
    const ticket = await fork(5);
    const gone = new AbortController();
    const first = fails(request(5, { block: true, min: -1, signal: gone.signal }));
    const second = request(1, { block: true });
    await expect.poll(() => daemon.system.queue.length).toBe(2);
    gone.abort();
    expect(await first).toMatch(/^interrupted/);
    await expect.poll(() => daemon.system.queue.length).toBe(1);
    await ask(`POST ${at(ticket, '/merge')}`);
    expect(await second).toMatchObject({ allowed: 1 });
    expect(await free()).toBe(4);
  });

  it('leaves a ticket unused whose caller went away before it was redeemed', async () => {
    await seed();
    for (const host of hosts) host.behaviour.clonesDelayMs = 400;
    const { ticket } = await request(2);
    const gone = new AbortController();
    const redeem = fails(ask(`POST ${at(ticket, '/redeem')}`, { signal: gone.signal }));
    setTimeout(() => gone.abort(), 100);
    expect(await redeem).toMatch(/^interrupted/);
    await new Promise((resolve) => setTimeout(resolve, 500));
    expect((await ask('GET /clusters/0/tickets', { reply: TicketList })).unused).toEqual([ticket]);
  });

  it('tells who waits when sfmd stops', async () => {
    await seed();
    const ticket = await fork(5);
    const waiting = [fails(ask(`POST ${at(ticket, '/join')}`)), fails(request(1, { block: true }))];
    await expect.poll(() => daemon.system.queue.length).toBe(1);
    daemon[Symbol.dispose]();
    for (const each of await Promise.all(waiting)) expect(each).toMatch(/^unavailable: sfmd is stopping/);
  });
});

describe('who may do what', () => {
  it('refuses peers without a certificate of the cluster, and hosts that speak for others', async () => {
    using foreignCa = createTestCa();
    for (const tls of [
      { ...foreignCa.issue('host1'), ca: tlsOf('host1').ca },
      { ca: tlsOf('host1').ca } as unknown as TlsIdentity,
    ]) {
      using peer = new ControlClient({ address: '127.0.0.1', port, tls });
      expect(
        await fails(peer.request({ method: 'GET', path: '/v1/state', reply: SystemState, timeoutMs: 5000 })),
      ).toMatch(/^(unauthorized|host-down)/);
    }
    expect(await fails(hostOf('host2').report('host1'))).toMatch(/^unauthorized: .*'host1'/);
    using stranger = new ControlClient({ address: '127.0.0.1', port, tls: ca.issue('host9') });
    const body = { address: '127.0.0.1', sfldPort: 1, accel: 'tcg' };
    expect(
      await fails(
        stranger.request({ method: 'PUT', path: '/v1/hosts/host9', body, reply: NoReply, timeoutMs: 5000 }),
      ),
    ).toMatch(/^bad-request: host 'host9' is not in cluster_hosts/);
  });

  it('lets a host speak only for clusters that it runs VMs of, and people only do what their role allows', async () => {
    const { host } = await seed();
    const other = hostOf(NAMES.find((name) => name !== host) ?? '').sfmd;
    const { ticket } = await request(1, { min: 1 });
    const asks = (peer: ControlClient, method: 'GET' | 'POST' | 'DELETE', path: string, body?: unknown) =>
      fails(peer.request({ method, path: `/v1${path}`, body, reply: NoReply, timeoutMs: 5000 }));
    const clones = Object.values(daemon.system.clusters[0]?.vms ?? {}).map((vm) => vm.host);
    if (!clones.includes(NAMES.find((name) => name !== host) ?? '')) {
      expect(await asks(other, 'POST', at(ticket, '/redeem'))).toMatch(
        /^unauthorized: cluster 0 has nothing on/,
      );
      expect(await asks(other, 'GET', '/clusters/0/tickets')).toMatch(/^unauthorized/);
    }
    const ended = { how: 'lost', reason: 'a lie' };
    expect(await asks(other, 'POST', '/clusters/0/vms/0/ended', ended)).toMatch(/^unauthorized: VM 0:0/);

    using looker = new ControlClient({ address: '127.0.0.1', port, tls: ca.issueAs('read-only', 'eve') });
    expect(await asks(looker, 'GET', '/state')).toMatch(/^Error: no error/);
    expect(await asks(looker, 'DELETE', '/clusters/0?force=1')).toMatch(
      /^unauthorized: DELETE .* is for host, operator; 'eve' has the role read-only/,
    );
    using operator = new ControlClient({ address: '127.0.0.1', port, tls: ca.issueAs('operator', 'ann') });
    expect(await asks(operator, 'POST', at(ticket, '/redeem'))).toMatch(/^unauthorized/);
    using roleless = new ControlClient({ address: '127.0.0.1', port, tls: ca.issueAs('nothing', 'bob') });
    expect(await asks(roleless, 'GET', '/state')).toMatch(/^unauthorized: .*has no SnowFlock role/);
    expect(await asks(operator, 'DELETE', '/clusters/0?force=1')).toMatch(/^Error: no error/);
  });

  it('does not trust a host that answers with another name', async () => {
    const { sfldPort } = (await state()).hosts.find((host) => host.host === 'host2') ?? {};
    const body = { address: '127.0.0.1', sfldPort, accel: 'tcg' };
    const report = () =>
      hostOf('host1').sfmd.request({
        method: 'PUT',
        path: '/v1/hosts/host1',
        body,
        reply: NoReply,
        timeoutMs: 5000,
      });
    nowMs = 60_000;
    await report();
    const up = async () => (await state()).hosts.filter((host) => host.up).map((host) => host.host);
    await expect.poll(up, { timeout: 5000 }).toEqual(['host1']);
    expect(await fails(seed())).toMatch(/^unauthorized: host host1 could not start the master VM/);
  });
});
