// Whether hosts reach one another on every port that a fork needs; what `snowflock doctor` shows. From each host to each other:
//
//   sfld   its control port, with both certificates: asks it to open a listener for some seconds
//   pages  that listener: any free port, as memservers take; the other writes a word
//   vxlan  a datagram to the port of the clusters' networks. While that is closed there, the kernel answers that it is, which
//          says that the datagram came through; while VMs use it, nothing can be told
//
// Nothing of a cluster is touched, and nothing is left open.

import { createSocket } from 'node:dgram';
import { readFileSync } from 'node:fs';
import { connect, createServer } from 'node:net';
import {
  ReachListener,
  ReachReport,
  SFLD_ROUTES,
  SystemState,
  toSnowflockError,
  type ReachPair,
} from '@snowflock/protocol';
import { VXLAN_PORT } from '@snowflock/network';
import { within } from '@snowflock/vm';
import type { HostContext } from './context.ts';

const LISTEN_MS = 5000;
const TRY_MS = 2500;
const STATE_TIMEOUT_MS = 5000;
/** All pairs of one host, some at a time. */
const ONE_HOST_MS = 20_000;
const HOSTS_AT_ONCE = 16;
const GREETING = 'snowflock\n';

/** Opens a port for whoever checks this host; it closes by itself. */
export async function listenForReach(address: string): Promise<ReachListener> {
  const server = createServer((socket) => {
    socket.on('error', () => socket.destroy());
    socket.end(GREETING);
  });
  const port = await new Promise<number>((resolve, reject) => {
    server.once('error', reject);
    server.listen({ host: address, port: 0 }, () => {
      const bound = server.address();
      resolve(typeof bound === 'object' && bound ? bound.port : 0);
    });
  });
  setTimeout(() => server.close(), LISTEN_MS).unref();
  return { port, vxlanInUse: isUdpPortOpen(VXLAN_PORT), nowMs: Date.now() };
}

/** What this host reaches; with `all` also what every other host says that it reaches. */
export async function checkReach(context: HostContext, { all }: { all: boolean }): Promise<ReachReport> {
  const { host, masterDaemon } = context;
  let state: SystemState;
  try {
    const path = '/v1/state';
    state = await masterDaemon.request({
      method: 'GET',
      path,
      reply: SystemState,
      timeoutMs: STATE_TIMEOUT_MS,
    });
  } catch (error) {
    return { pairs: [failed({ from: host, to: 'sfmd', part: 'sfmd' }, error)], clocks: [] };
  }
  const report: ReachReport = { pairs: [ok({ from: host, to: 'sfmd', part: 'sfmd' })], clocks: [] };
  const others = state.hosts.filter((each) => each.host !== host);
  const waiting = [...others];
  const checker = async (): Promise<void> => {
    for (let next = waiting.shift(); next; next = waiting.shift()) {
      const { address, sfldPort } = next;
      if (address === null || sfldPort === null) {
        const reason = 'it has never reported itself; is sfld started there?';
        report.pairs.push({ from: host, to: next.host, part: 'sfld', state: 'failed', reason });
        continue;
      }
      const target = { host: next.host, address, port: sfldPort };
      const found = await checkHost(context, target);
      report.pairs.push(...found.pairs);
      report.clocks.push(...found.clocks);
      if (all && found.clocks.length > 0) report.pairs.push(...(await askHost(context, target)));
    }
  };
  await Promise.all(Array.from({ length: HOSTS_AT_ONCE }, checker));
  return report;
}

interface Target {
  readonly host: string;
  readonly address: string;
  readonly port: number;
}

async function checkHost({ host, peers }: HostContext, target: Target): Promise<ReachReport> {
  const pair = (part: ReachPair['part']) => ({ from: host, to: target.host, part });
  const askedAtMs = Date.now();
  let listener: ReachListener;
  try {
    const { method, path } = SFLD_ROUTES.reachListen;
    const client = peers.client(target);
    listener = await client.request({ method, path, reply: ReachListener, timeoutMs: TRY_MS });
  } catch (error) {
    return { pairs: [failed(pair('sfld'), error)], clocks: [] };
  }
  const aheadMs = listener.nowMs - (askedAtMs + Date.now()) / 2;
  const pages = outcome(pair('pages'), tryTcp(target.address, listener.port));
  const vxlan: Promise<ReachPair> = listener.vxlanInUse
    ? Promise.resolve({ ...pair('vxlan'), state: 'untried', reason: 'VMs use it at this moment' })
    : outcome(pair('vxlan'), tryClosedUdp(target.address, VXLAN_PORT));
  return {
    pairs: [ok(pair('sfld')), ...(await Promise.all([pages, vxlan]))],
    clocks: [{ host: target.host, aheadMs }],
  };
}

/** What another host reaches, as its sfld says. */
async function askHost({ peers }: HostContext, target: Target): Promise<ReachPair[]> {
  const { method, path } = SFLD_ROUTES.reach;
  try {
    const client = peers.client(target);
    return (await client.request({ method, path, reply: ReachReport, timeoutMs: ONE_HOST_MS })).pairs;
  } catch (error) {
    return [failed({ from: target.host, to: 'all others', part: 'sfld' }, error)];
  }
}

function ok(pair: Pick<ReachPair, 'from' | 'to' | 'part'>): ReachPair {
  return { ...pair, state: 'ok', reason: null };
}

function failed(pair: Pick<ReachPair, 'from' | 'to' | 'part'>, error: unknown): ReachPair {
  return { ...pair, state: 'failed', reason: toSnowflockError(error).message };
}

async function outcome(
  pair: Pick<ReachPair, 'from' | 'to' | 'part'>,
  work: Promise<void>,
): Promise<ReachPair> {
  return work.then(
    () => ok(pair),
    (error: unknown) => failed(pair, error),
  );
}

async function tryTcp(address: string, port: number): Promise<void> {
  const socket = connect({ host: address, port });
  const greeted = new Promise<void>((resolve, reject) => {
    socket.once('data', () => resolve());
    socket.once('error', reject);
    socket.once('close', () => reject(new Error('the connection ended without a word')));
  });
  try {
    await within(greeted, TRY_MS, `an answer of ${address}, TCP port ${port}`);
  } finally {
    socket.destroy();
  }
}

/** Resolves when the kernel there answers that nobody listens. */
async function tryClosedUdp(address: string, port: number): Promise<void> {
  const socket = createSocket(address.includes(':') ? 'udp6' : 'udp4');
  const refused = new Promise<void>((resolve, reject) => {
    socket.on('error', (error: NodeJS.ErrnoException) =>
      error.code === 'ECONNREFUSED' ? resolve() : reject(error),
    );
    socket.on('message', () => resolve());
    socket.connect(port, address, () => socket.send('snowflock'));
  });
  // A datagram may be lost.
  const again = setInterval(() => socket.send('snowflock', () => undefined), TRY_MS / 5);
  try {
    await within(refused, TRY_MS, `an answer of ${address}, UDP port ${port}`);
  } finally {
    clearInterval(again);
    socket.close();
  }
}

function isUdpPortOpen(port: number): boolean {
  const hex = port.toString(16).toUpperCase().padStart(4, '0');
  return ['/proc/net/udp', '/proc/net/udp6'].some((path) => {
    try {
      return readFileSync(path, 'utf8')
        .split('\n')
        .some((line) => (line.trim().split(/\s+/)[1] ?? '').endsWith(`:${hex}`));
    } catch {
      return false; // no IPv6 on this machine
    }
  });
}
