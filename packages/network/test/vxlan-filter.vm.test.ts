// Two hosts and a stranger on one network: what the stranger sends into a cluster's network does not arrive.

import { randomBytes } from 'node:crypto';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { requireVm } from '../../../tests/require-vm.ts';
import {
  applyVxlanFilter,
  ClusterNetwork,
  hasVxlanFilter,
  removeFilters,
  runBatch,
  runCommand,
  runTool,
} from '../src/index.ts';

const RUN = requireVm(['root', 'tun', 'ip', 'nft']);
const TAG = randomBytes(3).toString('hex');
const SWITCH = `sfnf-${TAG}-s`;
/** The last one is the stranger. */
const MACHINES = ['h1', 'h2', 'x'].map((name, index) => ({
  netns: `sfnf-${TAG}-${name}`,
  guest: `sfnf-${TAG}-${name}g`,
  address: `10.78.0.${index + 1}`,
  guestAddress: `10.0.0.${index + 1}`,
}));
const [one, two, stranger] = MACHINES as [Machine, Machine, Machine];
type Machine = (typeof MACHINES)[number];

/** By frames without an answer too: how many the guest has received. */
async function received(machine: Machine): Promise<number> {
  const text = await runTool('ip', ['-j', '-s', 'link', 'show', 'dev', 'eth0'], { netns: machine.guest });
  return (JSON.parse(text) as [{ stats64: { rx: { packets: number } } }])[0].stats64.rx.packets;
}

async function reaches(from: Machine, to: Machine): Promise<boolean> {
  await runTool('ip', ['neigh', 'flush', 'dev', 'eth0'], { netns: from.guest });
  const ping = `for i in 1 2; do busybox ping -c 1 -W 1 ${to.guestAddress} >/dev/null 2>&1 && exit 0; done; exit 1`;
  return (await runCommand(['ip', 'netns', 'exec', from.guest, 'sh', '-c', ping])).status === 0;
}

const filter = (hosts: readonly Machine[]): Promise<void> =>
  applyVxlanFilter(
    { hosts: hosts.map(({ address }) => address), localAddress: one.address },
    { netns: one.netns },
  );

describe.skipIf(!RUN)('the filter of VXLAN', () => {
  beforeAll(async () => {
    await runBatch('ip', [`netns add ${SWITCH}`]);
    await runBatch('ip', ['link add name br type bridge', 'link set dev br up'], { netns: SWITCH });
    for (const [index, { netns, guest, address, guestAddress }] of MACHINES.entries()) {
      await runBatch('ip', [
        `netns add ${netns}`,
        `netns add ${guest}`,
        `link add name p${index} netns ${SWITCH} type veth peer name eth0 netns ${netns}`,
        `link add name g netns ${netns} mtu 1450 type veth peer name eth0 netns ${guest} mtu 1450`,
      ]);
      await runBatch('ip', [`link set dev p${index} master br up`], { netns: SWITCH });
      await runBatch('ip', [`addr add ${address}/24 dev eth0`, 'link set dev eth0 up'], { netns });
      // Without IPv6 they say nothing unasked.
      await runBatch('ip', ['link set dev g addrgenmode none'], { netns });
      const up = [
        'link set dev eth0 addrgenmode none',
        `addr add ${guestAddress}/16 dev eth0`,
        'link set dev eth0 up',
      ];
      await runBatch('ip', up, { netns: guest });
      // The stranger has the same tools, and knows the cluster's number.
      const peers = MACHINES.map((machine) => machine.address);
      const network = await ClusterNetwork.open({ clusterid: 3, localAddress: address, peers, netns });
      await runBatch('ip', [`link set dev g master ${network.bridge} up`], { netns });
    }
  });

  afterAll(async () => {
    const names = [SWITCH, ...MACHINES.flatMap(({ netns, guest }) => [netns, guest])];
    await runBatch(
      'ip',
      names.map((name) => `netns del ${name}`),
      { force: true },
    );
  });

  it('lets in what hosts send and nothing of a stranger, follows who is a host, and goes without residue', async () => {
    expect(await reaches(stranger, one)).toBe(true); // so the stranger does send
    await filter([one, two]);
    expect(await hasVxlanFilter({ netns: one.netns })).toBe(true);
    const before = await received(one);
    expect(await reaches(stranger, one)).toBe(false);
    expect(await received(one)).toBe(before); // not one frame, no broadcast either
    expect(await reaches(two, one)).toBe(true);

    await filter([two, stranger]); // a host that joins
    expect(await reaches(stranger, one)).toBe(true);
    await filter([]); // all have left
    expect(await reaches(two, one)).toBe(false);

    await removeFilters({ netns: one.netns });
    await removeFilters({ netns: one.netns });
    expect(await hasVxlanFilter({ netns: one.netns })).toBe(false);
    expect(await runTool('nft', ['list', 'ruleset'], { netns: one.netns })).toBe('');
    expect(await reaches(stranger, one)).toBe(true);
  });
});
