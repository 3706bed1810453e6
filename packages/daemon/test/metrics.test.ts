import { randomUUID } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import * as http from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { apply, createSystem } from '@snowflock/cluster';
import { ControlClient, NoReply, ROLES, SFLD_ROUTES, SnowflockError } from '@snowflock/protocol';
import { memtapStatsSchema, type MemserverStats, type MemtapStats } from '@snowflock/replication';
import { createControlServer } from '../src/http.ts';
import { silentLog } from '../src/log.ts';
import type { DaemonMetrics } from '../src/metrics.ts';
import { serve } from '../src/serve.ts';
import { FetchTotals } from '../src/sfld/fetch-totals.ts';
import { SfldMetrics } from '../src/sfld/metrics.ts';
import { SfmdMetrics } from '../src/sfmd/metrics.ts';

const LATENCY = {
  ...{ count: 4, minUs: 10, medianUs: 100, p99Us: 2000, maxUs: 3000, sumUs: 3500 },
  buckets: [2, 2, 3, 3, 3, 4, 4, 4, 4, 4, 4, 4],
};

function memtap(changes: Partial<MemtapStats> = {}): MemtapStats {
  const numbers = Object.keys(memtapStatsSchema.shape).map((name) => [name, 0] as const);
  return memtapStatsSchema.parse({
    ...Object.fromEntries(numbers),
    ...{ attached: true, sourceLost: null, missLatency: LATENCY, byProcess: {}, multicast: null },
    push: undefined,
    ...changes,
  });
}

const MEMSERVER: MemserverStats = {
  ...{ clients: 1, refusedClients: 0, failedHandshakes: 1, droppedClients: 0, requests: 9, errors: 2 },
  ...{
    sentBytes: 5000,
    compressedPages: 0,
    nearPages: 0,
    pagesRead: 7,
    zeroPages: 3,
    holePages: 1,
    leasedPids: [],
    frozenPid: 1,
    sourceLost: null,
    multicast: null,
  },
};

/** The value of one line of the text format, labels in any order. */
function valueOf(text: string, name: string, labels: Record<string, string> = {}): number | undefined {
  const line = text
    .split('\n')
    .find(
      (each) =>
        new RegExp(`^${name}(\\{|\\s)`).test(each) &&
        Object.entries(labels).every(([key, value]) => each.includes(`${key}="${value}"`)),
    );
  return line === undefined ? undefined : Number(line.split(' ').at(-1));
}

describe('docs/metrics.md', () => {
  const doc = readFileSync(new URL('../../../docs/metrics.md', import.meta.url), 'utf8');
  const section = (daemon: string): string =>
    doc.split(/^## /m).find((each) => each.startsWith(`${daemon}\n`)) ?? '';
  const rowsOf = (text: string): string[] =>
    text
      .split('\n')
      .filter((line) => line.startsWith('| `snowflock_'))
      .map((line) =>
        line
          .split(/(?<!\\)\|/)
          .map((cell) => cell.trim())
          .join('|'),
      );
  const expected = (metrics: DaemonMetrics, names: (name: string) => boolean): string[] =>
    metrics.registry
      .getMetricsAsArray()
      .filter(({ name }) => names(name))
      .map((metric) => {
        const { name, help, type, labelNames = [] } = metric as typeof metric & { labelNames?: string[] };
        const labels = labelNames.map((label) => `\`${label}\``).join(', ');
        return `|\`${name}\`|${String(type)}|${labels}|${help}|`;
      });
  const own = (name: string): boolean => name.startsWith('snowflock_');
  const both = (name: string): boolean =>
    [
      'snowflock_http_request_seconds',
      'snowflock_errors_total',
      'snowflock_certificate_expires_seconds',
    ].includes(name);
  const sfmd = new SfmdMetrics(() => createSystem({ hosts: [], clusterid: 0 }));
  const sfld = new SfldMetrics();

  it.each([
    ['sfmd', sfmd, (name: string) => own(name) && !both(name)],
    ['sfld', sfld, (name: string) => own(name) && !both(name)],
    ['Both daemons', sfld, both],
  ] as const)('says of %s what the registry has, no more and no less', (title, metrics, names) => {
    expect(rowsOf(section(title)).sort()).toEqual(expected(metrics, names).sort());
  });
});

describe('sfmd', () => {
  it('shows hosts, resources, VMs and queues as they are when it is asked', async () => {
    const system = createSystem({
      hosts: [
        { host: 'a', cpus: 4, ramBytes: 1 << 30 },
        { host: 'b', cpus: 2, ramBytes: 1 << 30 },
      ],
      clusterid: 0,
    });
    const metrics = new SfmdMetrics(() => system);
    expect(valueOf(await metrics.text(), 'snowflock_host_up', { host: 'a' })).toBe(0);
    const chance = { random: () => 0, newTicket: randomUUID };
    const report = { address: '10.0.0.1', sfldPort: 1, accel: 'tcg' } as const;
    apply(system, { type: 'host-reported', host: 'a', report, nowMs: 0 }, chance);
    apply(system, { type: 'seed', shape: { diskImage: 'x', vcpus: 1, memoryMib: 64 } }, chance);
    apply(system, { type: 'master-started', clusterid: 0, diskBytes: 0 }, chance);
    const request = { nclones: 2, procs: false, min: 2, block: true };
    for (const requestId of ['1', '2'])
      apply(system, { type: 'request-ticket', clusterid: 0, requestId, request }, chance);
    const text = await metrics.text();
    expect(valueOf(text, 'snowflock_host_up', { host: 'a' })).toBe(1);
    expect(valueOf(text, 'snowflock_host_cpus', { host: 'a', kind: 'reserved' })).toBe(3);
    expect(valueOf(text, 'snowflock_host_memory_bytes', { host: 'a', kind: 'reserved' })).toBe(
      (3 * 64 + 16) * 2 ** 20, // three VMs, and a quarter of one for the frozen image
    );
    expect(valueOf(text, 'snowflock_host_cpus', { host: 'b', kind: 'total' })).toBe(2);
    expect(valueOf(text, 'snowflock_vms', { state: 'preparing' })).toBe(2);
    expect(valueOf(text, 'snowflock_tickets', { state: 'unused' })).toBe(1);
    expect(valueOf(text, 'snowflock_queue_length', { queue: 'tickets' })).toBe(1);
    expect(valueOf(text, 'process_open_fds')).toBeGreaterThan(0);
  });
});

describe('sfld', () => {
  it('splits bytes by path, and keeps what processes counted that are gone', async () => {
    const metrics = new SfldMetrics();
    const pages = 4096;
    metrics.memtapSaid('t1', memtap({ demandBytes: 10 * pages, demandDiskPages: 4, prefetchedBytes: pages }));
    metrics.memtapSaid(
      't1',
      memtap({ demandBytes: 20 * pages, demandDiskPages: 4, zeroPages: 2, sharedReads: 5 }),
    );
    metrics.memserverSaid('t1', MEMSERVER);
    metrics.ticketGone('t1');
    metrics.memtapSaid('t2', memtap({ demandBytes: pages, heldReads: 3 }));
    const text = await metrics.text();
    expect(valueOf(text, 'snowflock_fetched_bytes_total', { path: 'demand' })).toBe(17 * pages);
    expect(valueOf(text, 'snowflock_fetched_bytes_total', { path: 'disk' })).toBe(4 * pages);
    expect(valueOf(text, 'snowflock_fetched_bytes_total', { path: 'zero' })).toBe(2 * pages);
    expect(valueOf(text, 'snowflock_faults_total', { answered: 'cache' })).toBe(5);
    expect(valueOf(text, 'snowflock_served_pages_total', { kind: 'data' })).toBe(4);
    expect(valueOf(text, 'snowflock_waiting_faults')).toBe(3);
    expect(valueOf(text, 'snowflock_page_processes', { kind: 'memtap' })).toBe(1);
    expect(valueOf(text, 'snowflock_fault_seconds', { quantile: '0.99' })).toBeCloseTo(0.002);
    // of both tickets
    expect(valueOf(text, 'snowflock_fault_wait_seconds_bucket', { le: '0.0005' })).toBe(6);
    expect(valueOf(text, 'snowflock_fault_wait_seconds_bucket', { le: '+Inf' })).toBe(8);
    expect(valueOf(text, 'snowflock_fault_wait_seconds_sum')).toBeCloseTo(0.007);
    expect(valueOf(text, 'snowflock_fault_wait_seconds_count')).toBe(8);
  });

  it('asks its processes when somebody scrapes, and waits for none that does not answer', async () => {
    const metrics = new SfldMetrics();
    let asked = 0;
    const never = new Promise<never>(() => undefined);
    metrics.watch({
      memtaps: () => [
        ['t1', async () => memtap({ demandBytes: 4096 })],
        ['t2', async () => ((asked += 1), never)],
      ],
      memservers: () => [['t1', async () => MEMSERVER]],
      relays: () => [['t1', async () => ({ ...MEMSERVER, sentBytes: 700 })]],
      vms: () => ({ master: 1, clone: 2 }),
    });
    const began = performance.now();
    const text = await metrics.text();
    expect(performance.now() - began).toBeLessThan(5000);
    expect(valueOf(text, 'snowflock_fetched_bytes_total', { path: 'demand' })).toBe(4096);
    expect(valueOf(text, 'snowflock_served_bytes_total')).toBe(5000);
    expect(valueOf(text, 'snowflock_relayed_bytes_total')).toBe(700);
    expect(valueOf(text, 'snowflock_host_vms', { kind: 'clone' })).toBe(2);
    await metrics.text();
    expect(asked).toBe(1);
  });

  it('counts forks and clones', async () => {
    const metrics = new SfldMetrics();
    metrics.forkEnded('failed');
    metrics.launched({
      clones: [
        { vmid: 1, ok: true },
        { vmid: 2, ok: false },
      ],
    });
    metrics.identified({ descriptorAtMs: 1000, identifiedAtMs: 1250 });
    metrics.identified({ descriptorAtMs: 1000, identifiedAtMs: null });
    metrics.cloneGone({ status: 'lost' });
    const text = await metrics.text();
    expect(valueOf(text, 'snowflock_forks_total', { result: 'failed' })).toBe(1);
    expect(valueOf(text, 'snowflock_clones_total', { result: 'ok' })).toBe(1);
    expect(valueOf(text, 'snowflock_clones_total', { result: 'lost' })).toBe(1);
    expect(valueOf(text, 'snowflock_clone_launch_seconds_count')).toBe(1);
    expect(valueOf(text, 'snowflock_clone_launch_seconds_sum')).toBe(0.25);
  });
});

it('a total never falls', () => {
  const totals = new FetchTotals(['n']);
  totals.update('a', { n: 3 });
  totals.update('b', { n: 4 });
  totals.update('a', { n: 5 });
  expect(totals.total('n')).toBe(9);
  totals.retire('a');
  totals.retire('a');
  expect(totals.total('n')).toBe(9);
});

it('a daemon serves /metrics, with its requests by route and its errors by code', async () => {
  const dir = mkdtempSync(join(tmpdir(), 'snowflock-metrics-'));
  const metrics = new SfldMetrics();
  await using server = await createControlServer({
    ...{ name: 'testd', log: silentLog(), metrics },
    register(app) {
      serve(app, SFLD_ROUTES.metrics, () => metrics.text());
      app.get('/v1/vms/:vm', { config: { roles: ROLES } }, () => {
        throw new SnowflockError('no-such-vm', 'no VM');
      });
    },
  });
  const socketPath = join(dir, 'd.sock');
  await server.listenUnix(socketPath);
  {
    using client = new ControlClient({ socketPath });
    for (const path of ['/v1/vms/0:1', '/v1/vms/0:2', '/v1/nothing/here'])
      await expect(
        client.request({ method: 'GET', path, reply: NoReply, timeoutMs: 5000 }),
      ).rejects.toThrow();
    await expect(client.upgrade({ path: '/v1/x', protocol: 'echo', timeoutMs: 5000 })).rejects.toThrow();
  }
  const { type, text } = await new Promise<{ type: string | undefined; text: string }>((resolve, reject) => {
    http
      .get({ socketPath, path: '/metrics' }, (response) => {
        let body = '';
        response.on('data', (chunk: Buffer) => (body += chunk.toString()));
        response.on('end', () => resolve({ type: response.headers['content-type'], text: body }));
      })
      .on('error', reject);
  });
  expect(type).toBe(metrics.registry.contentType);
  const labels = { method: 'GET', route: '/v1/vms/:vm', status: '404' };
  expect(valueOf(text, 'snowflock_http_request_seconds_count', labels)).toBe(2);
  expect(text).not.toContain('0:1');
  expect(text).not.toContain('/v1/nothing');
  expect(valueOf(text, 'snowflock_errors_total', { code: 'no-such-vm', to: 'http' })).toBe(2);
  expect(valueOf(text, 'snowflock_errors_total', { code: 'bad-request', to: 'http' })).toBe(1);
  for (const line of text.split('\n').filter(Boolean))
    expect(line).toMatch(
      /^(# (HELP|TYPE) [a-z\d_]+ .+|[a-zA-Z\d_]+(\{.*\})? [-+\d.eE]+|[a-zA-Z\d_]+(\{.*\})? (Na[nN]|\+Inf))$/,
    );
  rmSync(dir, { recursive: true });
});
