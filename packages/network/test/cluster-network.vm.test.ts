import { randomBytes } from 'node:crypto';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { requireVm } from '../../../tests/require-vm.ts';
import { ClusterNetwork, listLinks, runBatch, runTool, sweep } from '../src/index.ts';

const RUN = requireVm(['root', 'tun', 'ip', 'nft']);

// Two hosts, joined by a veth pair; the endpoints of the clusters are veth pairs into namespaces of their own, as a
// VM is behind its tap.
const TAG = randomBytes(3).toString('hex');
const HOSTS = [`sfnt-${TAG}-h1`, `sfnt-${TAG}-h2`] as const;
const ADDRESSES = ['10.77.0.1', '10.77.0.2'] as const;

async function ping(netns: string, address: string): Promise<boolean> {
  const ping = `for i in 1 2; do busybox ping -c 1 -W 1 ${address} >/dev/null 2>&1 && exit 0; done; exit 1`;
  try {
    await runTool('ip', ['netns', 'exec', netns, 'sh', '-c', ping]);
    return true;
  } catch {
    return false;
  }
}

describe.skipIf(!RUN)('ClusterNetwork between two hosts', () => {
  const guests: string[] = [];

  /** A guest of the cluster on a host: namespace with eth0, its other end on the cluster's bridge. */
  async function addGuest(host: string, network: ClusterNetwork, number: number): Promise<string> {
    const name = `sfnt-${TAG}-g${guests.length}`;
    guests.push(name);
    await runBatch('ip', [
      `netns add ${name}`,
      `link add name g${guests.length} netns ${host} mtu 1450 type veth peer name eth0 netns ${name} mtu 1450`,
    ]);
    await runBatch('ip', [`link set dev g${guests.length} master ${network.bridge} up`], { netns: host });
    await runBatch('ip', [`addr add 10.0.0.${number}/16 dev eth0`, 'link set dev eth0 up'], { netns: name });
    return name;
  }

  beforeAll(async () => {
    await runBatch('ip', [
      ...HOSTS.map((host) => `netns add ${host}`),
      `link add name eth0 netns ${HOSTS[0]} type veth peer name eth0 netns ${HOSTS[1]}`,
    ]);
    for (const [k, host] of HOSTS.entries())
      await runBatch(
        'ip',
        [`addr add ${ADDRESSES[k]}/24 dev eth0`, 'link set dev eth0 up', 'link set dev lo up'],
        {
          netns: host,
        },
      );
  });

  afterAll(async () => {
    await runBatch(
      'ip',
      [...guests, ...HOSTS].map((name) => `netns del ${name}`),
      { force: true },
    );
  });

  it('carries frames within a cluster, not between two, and leaves nothing', async () => {
    const open = (k: 0 | 1, clusterid: number): Promise<ClusterNetwork> =>
      ClusterNetwork.open({ clusterid, localAddress: ADDRESSES[k], peers: ADDRESSES, netns: HOSTS[k] });
    const networks = [
      await open(0, 0),
      await open(1, 0),
      await open(0, 0xfffffe),
      await open(1, 0xfffffe),
    ] as const;
    const a1 = await addGuest(HOSTS[0], networks[0], 1);
    await addGuest(HOSTS[1], networks[1], 2);
    const b3 = await addGuest(HOSTS[0], networks[2], 3);
    await addGuest(HOSTS[1], networks[3], 4);

    expect(await ping(a1, '10.0.0.2')).toBe(true);
    expect(await ping(b3, '10.0.0.4')).toBe(true);
    expect(await ping(a1, '10.0.0.3')).toBe(false);
    expect(await ping(a1, '10.0.0.4')).toBe(false);
    // The host is no neighbour of its guests.
    const addresses = await runTool('ip', ['-j', 'addr', 'show', 'dev', networks[0].bridge], {
      netns: HOSTS[0],
    });
    expect(JSON.parse(addresses)).toMatchObject([{ addr_info: [] }]);

    await networks[0].setPeers([]);
    await networks[1].setPeers([]);
    expect(networks[0].peers).toEqual([]);
    for (const network of networks) await network.close();
    for (const network of networks) await network.close();
    for (const host of HOSTS)
      expect((await listLinks({ netns: host })).filter((name) => /^sf[bvt]/.test(name))).toEqual([]);
  });

  it('makes taps as QEMU opens them, attaches and removes them, twice too', async () => {
    await using network = await ClusterNetwork.open({
      clusterid: 5,
      localAddress: ADDRESSES[0],
      peers: ADDRESSES,
      netns: HOSTS[0],
    });
    expect(network.peers).toEqual([ADDRESSES[1]]);
    const tap = await network.addTap({ vmid: 41 });
    expect(await network.addTap({ vmid: 41 })).toBe(tap);
    const detail = async (): Promise<string> =>
      runTool('ip', ['-d', 'link', 'show', 'dev', tap], { netns: HOSTS[0] });
    expect(await detail()).toMatch(/vnet_hdr on/);
    expect(await detail()).toMatch(/[<,]BROADCAST,MULTICAST> .* master sfb5 state DOWN/);
    await network.attachTap({ vmid: 41 });
    expect(await detail()).toMatch(/[<,]UP[,>].* master sfb5/);
    await network.removeTap({ vmid: 41 });
    await network.removeTap({ vmid: 41 });
    await expect(network.attachTap({ vmid: 41 })).rejects.toThrow(/link set dev sft5-15/);
  });

  it('is found again, and swept, after its owner was killed', async () => {
    const options = { clusterid: 6, localAddress: ADDRESSES[0], netns: HOSTS[0] };
    const first = await ClusterNetwork.open({ ...options, peers: ['10.77.0.2', '10.77.0.9'] });
    const tap = await first.addTap({ vmid: 1 });
    // `first` is abandoned here, as by kill -9.
    const second = await ClusterNetwork.open({ ...options, peers: ['10.77.0.3'] });
    expect(second.peers).toEqual(['10.77.0.3']);
    expect(await runTool('bridge', ['fdb', 'show', 'dev', 'sfv6'], { netns: HOSTS[0] })).not.toMatch(
      /10\.77\.0\.[29]/,
    );
    expect(await sweep({ netns: HOSTS[0], only: () => false })).toEqual([]);
    expect((await sweep({ netns: HOSTS[0] })).sort()).toEqual(['sfb6', tap, 'sfv6'].sort());
    expect(await sweep({ netns: HOSTS[0] })).toEqual([]);
  });

  it('leaves nothing when opening fails half-way', async () => {
    // Another device already holds the VNI, so the VXLAN device cannot be made.
    await runBatch('ip', ['link add name other type vxlan id 10 local 10.77.0.1 dstport 4789'], {
      netns: HOSTS[0],
    });
    const options = { clusterid: 9, localAddress: ADDRESSES[0], peers: [], netns: HOSTS[0] };
    await expect(ClusterNetwork.open(options)).rejects.toThrow(/sfv9/);
    expect((await listLinks({ netns: HOSTS[0] })).filter((name) => name.startsWith('sf'))).toEqual([]);
    await runBatch('ip', ['link del dev other'], { netns: HOSTS[0] });
  });
});
