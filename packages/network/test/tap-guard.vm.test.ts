// What a VM may send, frame by frame: from behind its tap into a bridge with another VM. The taps are veth pairs here, as the filter
// knows them by their names only.

import { randomBytes } from 'node:crypto';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { guestMac, ROUTER_IP, routerMac } from '@snowflock/protocol';
import { requireVm } from '../../../tests/require-vm.ts';
import { ClusterNetwork, guardTapRules, runBatch, runTool, tapName, unguardTapRules } from '../src/index.ts';

const RUN = requireVm(['root', 'tun', 'ip', 'nft']);
const TAG = randomBytes(3).toString('hex');
const [HOST, SENDER, RECEIVER] = [`sftg-${TAG}-h`, `sftg-${TAG}-a`, `sftg-${TAG}-b`] as const;
const CLUSTER = 5;
const [OWN, OTHER] = [
  { clusterid: CLUSTER, vmid: 0 },
  { clusterid: CLUSTER, vmid: 1 },
];
const BROADCAST = 'ff:ff:ff:ff:ff:ff';

const hexMac = (mac: string): string => mac.replaceAll(':', '');
const hexIp = (ip: string): string => Buffer.from(ip.split('.').map(Number)).toString('hex');
const ether = (from: string, type: string, to = BROADCAST): string => hexMac(to) + hexMac(from) + type;
const u16 = (value: number): string => value.toString(16).padStart(4, '0');

const arp = (o: { ether?: string; mac: string; ip: string }): string =>
  `${ether(o.ether ?? o.mac, '0806')}0001080006040002${hexMac(o.mac)}${hexIp(o.ip)}${hexMac(BROADCAST)}${hexIp('10.0.0.2')}`;
const checksum = (header: string): string => {
  const words = header.match(/.{4}/g) ?? [];
  const sum = words.reduce((total, word) => total + Number.parseInt(word, 16), 0);
  return u16(0xffff - ((sum & 0xffff) + (sum >> 16)));
};
const udp = (mac: string, ip: string, port = 9): string => {
  const [before, after] = ['45000024000000004011', hexIp(ip) + hexIp('10.0.0.2')];
  const header = before + checksum(before + after) + after;
  return `${ether(mac, '0800')}${header}${u16(9)}${u16(port)}00100000${'61'.repeat(8)}`;
};
const ip6 = (from: string, icmp: string): string =>
  `${ether(guestMac(OWN), '86dd')}60000000${u16(icmp.length / 2)}3aff${from}fd536e6f776600000000000000000002${icmp}`;
const IP6_OWN = 'fd536e6f776600000000000000000001';
const IP6_OTHER = 'fd536e6f776600000000000000000002';
const advertisement = (target: string): string => `8800000060000000${target}`;

const own = guestMac(OWN);
const ALLOWED = {
  'IPv4 from its own address': udp(own, '10.0.0.1'),
  'ARP for its own address': arp({ mac: own, ip: '10.0.0.1' }),
  'IPv6 from its own address': ip6(IP6_OWN, '8000000000000000'),
  'a neighbour advertisement of itself': ip6(IP6_OWN, advertisement(IP6_OWN)),
  'RARP, by which its QEMU tells where it is': arp({ mac: own, ip: '10.0.0.1' }).replace('0806', '8035'),
  'VXLAN to another VM, which it may unpack if it likes': udp(own, '10.0.0.1', 4789),
};
const REFUSED = {
  "IPv4 from another VM's address": udp(own, '10.0.0.2'),
  "IPv4 from the router's address": udp(own, ROUTER_IP),
  'IPv4 from an address outside': udp(own, '192.0.2.1'),
  'IPv4 from no address': udp(own, '0.0.0.0'),
  "a frame with another VM's MAC": udp(guestMac(OTHER), '10.0.0.1'),
  "a frame with the router's MAC": udp(routerMac(CLUSTER), '10.0.0.1'),
  "ARP that takes another VM's address": arp({ mac: own, ip: '10.0.0.2' }),
  "ARP that takes the router's address": arp({ mac: own, ip: ROUTER_IP }),
  "ARP that gives its address another VM's MAC": arp({ ether: own, mac: guestMac(OTHER), ip: '10.0.0.1' }),
  "IPv6 from another VM's address": ip6(IP6_OTHER, '8000000000000000'),
  'IPv6 from a link-local address': ip6('fe800000000000000000000000000001', '8000000000000000'),
  'a router advertisement': ip6(IP6_OWN, '8600000040000708000000000000000000000000'),
  'a redirect': ip6(IP6_OWN, `8900000000000000${IP6_OWN}${IP6_OTHER}`),
  "a neighbour advertisement of another VM's address": ip6(IP6_OWN, advertisement(IP6_OTHER)),
  'a frame with a VLAN tag': `${ether(own, '8100')}0001${udp(own, '10.0.0.1').slice(24)}`,
  'a bridge protocol frame': `${ether(own, '0027', '01:80:c2:00:00:00')}424203${'00'.repeat(36)}`,
  'a frame of an unknown protocol': `${ether(own, '88b5')}${'62'.repeat(46)}`,
};

/** One at a time: the kernel bundles what comes together, and order would be lost. */
const SEND = `import socket,sys,time
s=socket.socket(socket.AF_PACKET,socket.SOCK_RAW); s.bind(("eth0",0))
for line in sys.stdin:
  s.send(bytes.fromhex(line.strip())); time.sleep(0.005)`;
/** Prints what comes until a frame ends in ee...; the first line says that it listens. */
const RECEIVE = `import socket,sys
s=socket.socket(socket.AF_PACKET,socket.SOCK_RAW,socket.htons(3)); s.bind(("eth0",0)); s.settimeout(20)
print("ready",flush=True)
while True:
  f=s.recv(4096).hex()
  if f.endswith("ee"*8): break
  print(f,flush=True)`;

/** The names of those frames that arrive at the other VM. */
async function arriving(frames: Record<string, string>): Promise<string[]> {
  const receiver = spawn('ip', ['netns', 'exec', RECEIVER, 'python3', '-c', RECEIVE], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const closed = once(receiver, 'close');
  receiver.stdout.setEncoding('utf8');
  let seen = '';
  const listening = Promise.withResolvers<undefined>();
  receiver.stdout.on('data', (text: string) => {
    seen += text;
    if (seen.startsWith('ready')) listening.resolve(undefined);
  });
  await listening.promise;
  const last = udp(own, '10.0.0.1').slice(0, -16) + 'ee'.repeat(8);
  const input = [...Object.values(frames), last].join('\n') + '\n';
  await runTool('ip', ['netns', 'exec', SENDER, 'python3', '-c', SEND], { input });
  await closed;
  return Object.entries(frames)
    .filter(([, frame]) => seen.includes(frame))
    .map(([name]) => name);
}

describe.skipIf(!RUN)('the guard of a tap', () => {
  let network: ClusterNetwork;
  const rules = (input: string): Promise<string> => runTool('nft', ['-f', '-'], { netns: HOST, input });

  beforeAll(async () => {
    await runBatch(
      'ip',
      [HOST, SENDER, RECEIVER].map((name) => `netns add ${name}`),
    );
    network = await ClusterNetwork.open({
      clusterid: CLUSTER,
      localAddress: '127.0.0.1',
      peers: [],
      netns: HOST,
    });
    for (const [ref, netns] of [
      [OWN, SENDER],
      [OTHER, RECEIVER],
    ] as const) {
      const tap = tapName(ref);
      await runBatch('ip', [`link add name ${tap} netns ${HOST} type veth peer name eth0 netns ${netns}`]);
      await runBatch('ip', [`link set dev ${tap} addrgenmode none master ${network.bridge} up`], {
        netns: HOST,
      });
      await runBatch('ip', ['link set dev eth0 addrgenmode none up'], { netns });
    }
  });

  afterAll(async () => {
    await runBatch(
      'ip',
      [SENDER, RECEIVER, HOST].map((name) => `netns del ${name}`),
      { force: true },
    );
  });

  it('lets pass what carries its own addresses, and nothing else', async () => {
    await rules(guardTapRules([OWN, OTHER]));
    expect(await arriving({ ...ALLOWED, ...REFUSED })).toEqual(Object.keys(ALLOWED));
  });

  it('stays when another tap comes or goes', async () => {
    const third = { clusterid: CLUSTER, vmid: 2 };
    await rules(guardTapRules([third]));
    await rules(unguardTapRules([tapName(third)]));
    await rules(unguardTapRules([tapName(third)]));
    expect(await arriving({ ...ALLOWED, ...REFUSED })).toEqual(Object.keys(ALLOWED));
    expect(await runTool('nft', ['list', 'ruleset'], { netns: HOST })).not.toContain(tapName(third));
  });

  it('hands nothing to the host itself, whichever of its MAC addresses is named', async () => {
    const hostIp = '10.0.0.2'; // as if the host had the address that the datagrams are for
    await runBatch('ip', ['link set dev lo up', `addr add ${hostIp}/32 dev lo`], { netns: HOST });
    const macs = [BROADCAST];
    for (const device of [network.bridge, tapName(OWN)]) {
      const text = await runTool('ip', ['-j', 'link', 'show', 'dev', device], { netns: HOST });
      macs.push((JSON.parse(text) as [{ address: string }])[0].address);
    }
    const input = macs.map((mac) => `${hexMac(mac)}${udp(own, '10.0.0.1').slice(12)}\n`).join('');
    /** How many of them have reached the host's UDP, where nobody listens. */
    const reaching = async (): Promise<number> => {
      const count = async (): Promise<number> => {
        const text = await runTool('ip', ['netns', 'exec', HOST, 'cat', '/proc/net/snmp']);
        return Number(/^Udp: \d+ (\d+)/m.exec(text)?.[1]); // NoPorts
      };
      const before = await count();
      await runTool('ip', ['netns', 'exec', SENDER, 'python3', '-c', SEND], { input });
      return (await count()) - before;
    };
    expect(await reaching()).toBe(0);
    await rules('flush chain bridge snowflock_taps input\n');
    expect(await reaching()).toBe(macs.length); // so they were for the host
    await rules(guardTapRules([OWN]));
    expect(await reaching()).toBe(0);
    await runBatch('ip', [`addr del ${hostIp}/32 dev lo`], { netns: HOST });
  });

  it('lets nothing pass from a tap without one', async () => {
    await rules(unguardTapRules([tapName(OWN)]));
    const counted = async (): Promise<number> =>
      Number(/packets (\d+)/.exec(await runTool('nft', ['list', 'ruleset'], { netns: HOST }))?.[1]);
    const before = await counted();
    const input = Object.values(ALLOWED).join('\n') + '\n';
    await runTool('ip', ['netns', 'exec', SENDER, 'python3', '-c', SEND], { input });
    expect((await counted()) - before).toBe(Object.keys(ALLOWED).length);
  });
});
