// Who is who on the network when a fork makes many clones, and when it happens while its master VM's network is busy.

import { createHash, randomBytes } from 'node:crypto';
import { guestIp6, guestMac } from '@snowflock/protocol';
import { describe, expect, it } from 'vitest';
import { eventually } from './support/deadline.ts';
import { requireVm } from './require-vm.ts';
import { sharedLab } from './support/test-lab.ts';

const RUN = requireVm();
const MANY = 32;
const PORT = 7000;
const TRAFFIC_MS = 60_000;

describe.skipIf(!RUN)('the network at a fork', () => {
  const lab = sharedLab({ hosts: 2, cpus: 20, ramMib: 6144 });

  it(`gives ${MANY} clones of one call ${MANY} right identities`, async () => {
    const master = await lab().seed();
    const { clones } = await lab().fork(master, MANY);
    expect(clones.map(({ vmid }) => vmid)).toEqual(Array.from({ length: MANY }, (_, i) => i + 1));
    const script =
      'hostname; cat /sys/class/net/eth0/address; ip -o addr show dev eth0 | sed -n "s/.* inet6* \\([^ ]*\\).*/\\1/p"';
    for (const clone of clones) {
      expect((await clone.sh(script)).split('\n')).toEqual([
        `sf-${clone.clusterid}-${clone.vmid}`,
        guestMac(clone),
        expect.stringMatching(`^${clone.ip}/`),
        `${guestIp6(clone.vmid)}/64`,
      ]);
    }
    // Nobody answers for another one.
    const targets = clones.map(({ ip }) => ip);
    const ask = 'for ip; do ping -c 1 -W 10 $ip >/dev/null || echo $ip; done; ip neigh show dev eth0';
    const neighbours = (await master.run(['sh', '-c', ask, 'sh', ...targets])).split('\n');
    expect(neighbours.map((line) => line.split(' ').slice(0, 3).join(' ')).sort()).toEqual(
      clones.map((clone) => `${clone.ip} lladdr ${guestMac(clone)}`).sort(),
    );
  });

  it('loses and mixes up nothing of a connection at full speed, which the clones are no part of', async () => {
    const master = await lab().seed();
    const [peer] = (await lab().fork(master, 1)).clones;
    if (!peer) throw new Error('no clone');
    const block = randomBytes(1 << 20);
    await master.put('/run/block', block);
    // nc would take an end of its input for the end of the connection.
    await peer.sh(
      `mkfifo /run/input; (nc -l -p ${PORT} 3<>/run/input <&3 | md5sum >/run/sum.new; mv /run/sum.new /run/sum) >/dev/null 2>&1 &`,
    );
    await eventually(TRAFFIC_MS, 'the peer to listen', () => peer.sh(`netstat -ltn | grep -q ':${PORT} '`));
    const send = `n=0; while [ ! -e /run/stop ]; do cat /run/block || exit; n=$((n+1)); echo $n >/run/sent; done | nc ${peer.ip} ${PORT}`;
    await master.sh(`(${send}; echo $? >/run/status) >/dev/null 2>&1 &`);
    const sent = async (): Promise<number> => Number(await master.file('/run/sent'));
    for (let fork = 0; fork < 3; fork++) {
      const before = await sent();
      const { ticket, clones } = await lab().fork(master, 2);
      for (const clone of clones) {
        expect(await clone.sh('cat /sys/class/net/eth0/address')).toBe(guestMac(clone));
        await clone.sh(`ping -c 1 -W 10 ${peer.ip} >/dev/null && ping -c 1 -W 10 ${master.ip} >/dev/null`);
        // Its end of the connection is over, and so is the program.
        await clone.file('/run/status');
      }
      await eventually(TRAFFIC_MS, 'the connection to go on', async () => {
        expect(await sent()).toBeGreaterThan(before + 1);
      });
      await master.sh(`sfmerge ${ticket}`);
    }
    await master.sh('touch /run/stop');
    await master.file('/run/status');
    const blocks = await sent();
    const hash = createHash('md5');
    for (let i = 0; i < blocks; i++) hash.update(block);
    expect(await peer.file('/run/sum')).toBe(`${hash.digest('hex')}  -`);
  });
});
