// The bench of sfmd: one real sfmd with 200 hosts that report, and 2,000 VMs; what it takes to answer.

import { spawn, type ChildProcess } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { Authority, identityFiles, writeIdentity, type Identity } from '@snowflock/authority';
import {
  ControlClient,
  NoReply,
  RedeemReply,
  SeedReply,
  SystemState,
  TicketGrant,
  type TlsIdentity,
} from '@snowflock/protocol';
import { figure, machine, type BenchResult } from '../figures.ts';
import { SimulatedHost } from './simulated-hosts.ts';

const HOSTS = 200;
const CLUSTERS = 10;
const TICKETS = 10;
const CLONES = 20;
const READY_MS = 60_000;
const TIMEOUT_MS = 30_000;
/** Not those of a real sfmd on this machine. */
const PORT = 28_000 + (process.pid % 2000);

const tlsOf = ({ ca, cert, key }: Identity): TlsIdentity => ({
  ca: Buffer.from(ca),
  cert: Buffer.from(cert),
  key: Buffer.from(key),
});
const hostName = (index: number): string => `host${index + 1}`;

export async function benchSfmd({
  quick,
  signal,
}: {
  quick: boolean;
  signal: AbortSignal;
}): Promise<BenchResult> {
  await using stack = new AsyncDisposableStack();
  const dir = await mkdtemp(join(tmpdir(), 'snowflock-bench-'));
  stack.defer(() => rm(dir, { recursive: true }));
  const authority = await Authority.create(join(dir, 'authority'), { name: 'bench' });
  const config = await configure(dir, authority);
  let sfmd = await startSfmd(config);
  stack.defer(() => killSfmd(sfmd));
  const hosts: SimulatedHost[] = [];
  for (let index = 0; index < HOSTS; index++) {
    signal.throwIfAborted();
    const name = hostName(index);
    const tls = tlsOf(await authority.newIdentity({ role: 'host', name, altNames: [name, '127.0.0.1'] }));
    const client = new ControlClient({ address: '127.0.0.1', port: PORT, tls, host: 'master' });
    const host = stack.use(await SimulatedHost.start({ name, tls, sfmd: client }));
    host.keepReporting();
    hosts.push(host);
  }
  const [first] = hosts as [SimulatedHost];
  const masters = await fill(first, hosts, signal);

  const samples = {
    state: [] as number[],
    ticket: [] as number[],
    report: [] as number[],
    restart: [] as number[],
  };
  const rounds = quick ? 50 : 300;
  const state = (): Promise<SystemState> =>
    first.sfmd.request({ method: 'GET', path: '/v1/state', reply: SystemState, timeoutMs: TIMEOUT_MS });
  for (let round = 0; round < rounds; round++) {
    signal.throwIfAborted();
    samples.state.push(await timed(state));
    const { clusterid, host } = masters[round % masters.length] ?? { clusterid: 0, host: first };
    let ticket: string | null = null;
    samples.ticket.push(
      await timed(async () => {
        ({ ticket } = await requestTicket(host, clusterid, 4));
      }),
    );
    if (ticket === null) throw new Error('no ticket was granted; the simulated hosts should have room');
    const path = `/v1/clusters/${clusterid}/tickets/${ticket as string}`;
    await host.sfmd.request({ method: 'DELETE', path, reply: NoReply, timeoutMs: TIMEOUT_MS });
    const reporter = hosts[round % hosts.length] ?? first;
    samples.report.push(await timed(() => reporter.report()));
  }
  const vms = countVms(await state());
  for (let round = 0; round < (quick ? 3 : 10); round++) {
    signal.throwIfAborted();
    await killSfmd(sfmd);
    const startedAtMs = performance.now();
    sfmd = await startSfmd(config);
    const found = countVms(await state());
    samples.restart.push(performance.now() - startedAtMs);
    if (found < vms) throw new Error(`after kill -9 sfmd knows ${found} of ${vms} VMs`);
  }
  for (const host of hosts) host.stop();
  const of = { case: `${HOSTS} hosts, ${vms} VMs`, unit: 'ms' } as const;
  return {
    bench: 'sfmd',
    machine: machine('none'),
    figures: [
      figure({ ...of, name: 'state', samples: samples.state }),
      figure({ ...of, name: 'ticket-of-4', samples: samples.ticket }),
      figure({ ...of, name: 'host-report', samples: samples.report }),
      figure({ ...of, name: 'kill-to-state', samples: samples.restart }),
    ],
  };
}

/** Clusters that have forked, until there are some 2,000 VMs. Answers their ids and the hosts of their master VMs. */
async function fill(
  first: SimulatedHost,
  hosts: readonly SimulatedHost[],
  signal: AbortSignal,
): Promise<{ clusterid: number; host: SimulatedHost }[]> {
  const masters = [];
  for (let index = 0; index < CLUSTERS; index++) {
    const seeded = await first.sfmd.request({
      ...{ method: 'POST', path: '/v1/clusters', reply: SeedReply, timeoutMs: TIMEOUT_MS },
      body: { diskImage: 'micro', vcpus: 1, memoryMib: 256 },
    });
    const host = hosts.find(({ name }) => name === seeded.host) ?? first;
    const base = `/v1/clusters/${seeded.clusterid}/tickets`;
    for (let round = 0; round < TICKETS; round++) {
      signal.throwIfAborted();
      const { ticket } = await requestTicket(host, seeded.clusterid, CLONES);
      const { clones } = await host.sfmd.request({
        ...{ method: 'POST', path: `${base}/${ticket}/redeem`, reply: RedeemReply, timeoutMs: TIMEOUT_MS },
        body: { redemption: randomUUID() },
      });
      await host.sfmd.request({
        ...{ method: 'POST', path: `${base}/${ticket}/launched`, reply: NoReply, timeoutMs: TIMEOUT_MS },
        body: { clones: clones.map(({ vmid }) => ({ vmid, ok: true })) },
      });
    }
    masters.push({ clusterid: seeded.clusterid, host });
  }
  return masters;
}

function requestTicket(host: SimulatedHost, clusterid: number, nclones: number): Promise<TicketGrant> {
  return host.sfmd.request({
    ...{
      method: 'POST',
      path: `/v1/clusters/${clusterid}/tickets`,
      reply: TicketGrant,
      timeoutMs: TIMEOUT_MS,
    },
    body: { nclones, procs: false, min: -1, block: false, requestId: randomUUID() },
  });
}

const countVms = (state: SystemState): number =>
  state.clusters.reduce((sum, { vms }) => sum + vms.filter(({ status }) => status === 'running').length, 0);

async function timed(work: () => Promise<unknown>): Promise<number> {
  const startedAtMs = performance.now();
  await work();
  return performance.now() - startedAtMs;
}

async function configure(dir: string, authority: Authority): Promise<string> {
  const identity = await authority.newIdentity({ role: 'master', name: 'master', altNames: ['master'] });
  const files = identityFiles(dir, 'sfmd');
  await writeIdentity(files, identity);
  const hosts = Array.from(
    { length: HOSTS },
    (_, index) => `    {'host': '${hostName(index)}', 'cpus': 16, 'RAM': 64*(1<<30)},`,
  );
  const config = join(dir, 'sfmd.cfg');
  await writeFile(
    config,
    `address = '127.0.0.1'
master_listen_port = ${PORT}
enroll_port = ${PORT + 2000}
state_dir = 'state'
run_dir = 'run'
tls_ca = '${files.ca}'
tls_cert = '${files.cert}'
tls_key = '${files.key}'
cluster_hosts = [
${hosts.join('\n')}
]
`,
  );
  return config;
}

async function startSfmd(config: string): Promise<ChildProcess> {
  const program = join(import.meta.dirname, '../../../bin/sfmd');
  const child = spawn(program, ['run', '--config', config], { stdio: ['ignore', 'pipe', 'pipe'] });
  let errors = '';
  child.stderr.on('data', (chunk: Buffer) => (errors = (errors + String(chunk)).slice(-2000)));
  try {
    await once(createInterface(child.stdout), 'line', { signal: AbortSignal.timeout(READY_MS) });
  } catch (error) {
    await killSfmd(child);
    throw new Error(`sfmd did not get ready: ${errors}`, { cause: error });
  }
  return child;
}

async function killSfmd(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const ended = once(child, 'exit');
  child.kill('SIGKILL');
  await ended;
}
