// What hosts do with the frames of VMs, without VMs, whose emulated processors would be what is measured: namespaces take their place, as
// a VM is behind its tap, and iperf3 runs in them. In turn over a cluster's network, with all its rules, and over a plain one: a bridge on
// each host, VXLAN between them, no rules.

import { randomBytes } from 'node:crypto';
import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { setTimeout as sleep } from 'node:timers/promises';
import { guestIp, guestMac, SnowflockError } from '@snowflock/protocol';
import {
  applyVxlanFilter,
  ClusterNetwork,
  guardTapRules,
  runBatch,
  runTool,
  tapName,
} from '@snowflock/network';
import { z } from 'zod';
import { figure, type Figure } from '../figures.ts';

const CLUSTER = 1;
const HOSTS = ['10.77.0.1', '10.77.0.2'] as const;
/** Of the two that share the first host, and the one on the second. */
const PLACES = [0, 0, 1] as const;
/** What VXLAN leaves of an Ethernet frame. */
const MTU = 1450;
const PLAIN = { id: 999, port: 4790 };
const PLAIN_NETWORK = '10.1.0.';
const SERVER_PORT = 5201;
const SERVER_MS = 5_000;
const KINDS = ['guarded', 'plain'] as const;
type Kind = (typeof KINDS)[number];

const Report = z.object({ end: z.object({ sum_received: z.object({ bits_per_second: z.number() }) }) });

interface World {
  /** A namespace for each of PLACES and kind. */
  readonly endpoints: Readonly<Record<Kind, readonly string[]>>;
}

export async function benchHostPath(options: { quick: boolean; signal: AbortSignal }): Promise<Figure[]> {
  const { quick, signal } = options;
  await using undo = new AsyncDisposableStack();
  const world = await build(undo);
  const figures: Figure[] = [];
  for (const [name, to] of [
    ['one host', 1],
    ['two hosts', 2],
  ] as const) {
    const rounds: Record<Kind, number>[] = [];
    for (let round = 0; round < (quick ? 3 : 15); round++) {
      signal.throwIfAborted();
      const seconds = quick ? 1 : 3;
      const order = round % 2 === 0 ? KINDS : KINDS.toReversed();
      const mbits = { guarded: 0, plain: 0 };
      for (const kind of order) mbits[kind] = await throughput(world, kind, to, seconds);
      rounds.push(mbits);
    }
    for (const kind of KINDS)
      figures.push(
        figure({
          ...{ name: 'host path, Mbit/s', case: `${name}, ${kind}`, unit: 'count' },
          samples: rounds.map((each) => each[kind]),
        }),
      );
    figures.push(
      figure({
        ...{ name: 'host path / plain', case: name, unit: 'ratio' },
        samples: rounds.map(({ guarded, plain }) => guarded / plain),
      }),
    );
  }
  return figures;
}

async function build(undo: AsyncDisposableStack): Promise<World> {
  const tag = randomBytes(3).toString('hex');
  const hosts = HOSTS.map((_, k) => `sfbn-${tag}-h${k}`);
  const endpoints = {
    guarded: PLACES.map((_, vmid) => `sfbn-${tag}-g${vmid}`),
    plain: PLACES.map((_, vmid) => `sfbn-${tag}-p${vmid}`),
  };
  const all = [...hosts, ...endpoints.guarded, ...endpoints.plain];
  undo.defer(() =>
    runBatch(
      'ip',
      all.map((name) => `netns del ${name}`),
      { force: true },
    ),
  );
  await runBatch('ip', [
    ...all.map((name) => `netns add ${name}`),
    `link add name eth0 netns ${hosts[0]} type veth peer name eth0 netns ${hosts[1]}`,
  ]);
  for (const [k, netns] of hosts.entries()) {
    const [own = '', other = ''] = k === 0 ? HOSTS : HOSTS.toReversed();
    await runBatch('ip', [`addr add ${own}/24 dev eth0`, 'link set dev eth0 up', 'link set dev lo up'], {
      netns,
    });
    const network = await ClusterNetwork.open({
      clusterid: CLUSTER,
      localAddress: own,
      peers: [other],
      netns,
    });
    await applyVxlanFilter({ hosts: HOSTS, localAddress: own }, { netns });
    await runBatch(
      'ip',
      [
        'link add name plain type bridge',
        `link add name plainvx mtu ${MTU} type vxlan id ${PLAIN.id} dstport ${PLAIN.port} local ${own} remote ${other}`,
        'link set dev plainvx master plain up',
        'link set dev plain up',
      ],
      { netns },
    );
    const vmids = [...PLACES.keys()].filter((vmid) => PLACES[vmid] === k);
    const refs = vmids.map((vmid) => ({ clusterid: CLUSTER, vmid }));
    await runTool('nft', ['-f', '-'], { netns, input: guardTapRules(refs) });
    for (const ref of refs) {
      const tap = tapName(ref);
      await join(
        netns,
        tap,
        network.bridge,
        endpoints.guarded[ref.vmid] ?? '',
        guestIp(ref.vmid),
        guestMac(ref),
      );
      await join(
        netns,
        `p${ref.vmid}`,
        'plain',
        endpoints.plain[ref.vmid] ?? '',
        PLAIN_NETWORK + String(ref.vmid + 1),
      );
    }
  }
  return { endpoints };
}

/** A namespace behind a device of a host's bridge. */
async function join(
  host: string,
  device: string,
  bridge: string,
  netns: string,
  ip: string,
  mac?: string,
): Promise<void> {
  const address = mac === undefined ? '' : `address ${mac}`;
  await runBatch('ip', [
    `link add name ${device} netns ${host} mtu ${MTU} type veth peer name eth0 netns ${netns} mtu ${MTU} ${address}`,
  ]);
  await runBatch('ip', [`link set dev ${device} master ${bridge} up`], { netns: host });
  await runBatch('ip', [`addr add ${ip}/16 dev eth0`, 'link set dev eth0 up'], { netns });
}

/** Mbit/s that arrive at the endpoint `to` of what the first one sends over one TCP connection. */
async function throughput({ endpoints }: World, kind: Kind, to: number, seconds: number): Promise<number> {
  const [sender = '', receiver = ''] = [endpoints[kind][0], endpoints[kind][to]];
  const ip = kind === 'guarded' ? guestIp(to) : PLAIN_NETWORK + String(to + 1);
  const server = spawn('ip', ['netns', 'exec', receiver, 'iperf3', '-s', '-1', '-p', String(SERVER_PORT)], {
    stdio: 'ignore',
  });
  const ended = once(server, 'exit');
  try {
    await listening(receiver);
    const client = ['iperf3', '-c', ip, '-p', String(SERVER_PORT), '-t', String(seconds), '-J'];
    const text = await runTool('ip', ['netns', 'exec', sender, ...client]);
    return Report.parse(JSON.parse(text)).end.sum_received.bits_per_second / 1e6;
  } finally {
    server.kill();
    await ended;
  }
}

async function listening(netns: string): Promise<void> {
  for (const deadline = performance.now() + SERVER_MS; performance.now() < deadline; await sleep(20))
    if (
      (await runTool('ip', ['netns', 'exec', netns, 'ss', '-Hltn', `sport = ${SERVER_PORT}`])).trim() !== ''
    )
      return;
  throw new SnowflockError(
    'unavailable',
    `iperf3 -s does not listen after ${SERVER_MS} ms; is iperf3 installed?`,
  );
}

/** Said before anything is made. */
export function requireIperf(): void {
  try {
    execFileSync('iperf3', ['--version'], { stdio: 'ignore' });
  } catch (error) {
    throw new SnowflockError('unavailable', "iperf3 is not installed; 'apt-get install iperf3' does it", {
      cause: error,
    });
  }
}
