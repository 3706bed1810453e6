// The private network of an impromptu cluster: its VMs reach each other wherever they run, and nobody else.

import { guestIp6, ROUTER_IP } from '@snowflock/protocol';
import { describe, expect, it } from 'vitest';
import type { Guest } from './support/guest.ts';
import { requireVm } from './require-vm.ts';
import { sharedLab } from './support/test-lab.ts';

const RUN = requireVm();
const SFLD_PORT = 0xc01f;
const SFMD_PORT = 0xf10c;

describe.skipIf(!RUN)('the network of a cluster', () => {
  const lab = sharedLab({ hosts: 2, cpus: 6, ramMib: 2048 });

  const pings = async (from: Guest, ip: string): Promise<boolean> =>
    (await from.exec(['ping', '-c', '2', '-W', '1', ip])).status === 0;

  it('joins master VM and clones over both hosts', async () => {
    const master = await lab().seed();
    const { clones } = await lab().fork(master, 3);
    const all = [master, ...clones];
    const hosts = new Set(await Promise.all(clones.map((clone) => lab().hostOf(clone))));
    expect([...hosts].sort()).toEqual([1, 2]);
    for (const from of all) {
      const targets = all.filter((to) => to !== from).map(({ ip }) => ip);
      const script = 'for ip; do ping -c 1 -W 5 $ip >/dev/null && echo $ip; done';
      expect((await from.run(['sh', '-c', script, 'sh', ...targets])).split('\n')).toEqual(targets);
    }
    // IPv6 the same, and no other address of it.
    for (const from of all) {
      const targets = all.filter((to) => to !== from).map((to) => guestIp6(to.vmid));
      const script = 'for ip; do ping6 -c 1 -W 5 $ip >/dev/null && echo $ip; done';
      expect((await from.run(['sh', '-c', script, 'sh', ...targets])).split('\n')).toEqual(targets);
      const inet6 = await from.sh("ip -6 addr show dev eth0 | sed -n 's/.*inet6 \\([^ ]*\\).*/\\1/p'");
      expect(inet6.split('\n')).toEqual([`${guestIp6(from.vmid)}/64`]);
      expect(await from.sh('ip route show default')).toMatch(
        new RegExp(`^default via ${ROUTER_IP} dev eth0`),
      );
      expect(await from.file('/etc/resolv.conf')).toBe(`nameserver ${ROUTER_IP}`);
    }
    // A megabyte over TCP, from each to the next.
    const sum = await master.sh('head -c 1048576 /dev/urandom > /run/data; md5sum < /run/data');
    for (const [index, to] of clones.entries()) {
      await to.sh("nc -l -p 7000 -e sh -c 'cat > /run/data.new' >/dev/null 2>&1 & usleep 100000");
      await all[index]?.sh(`nc -w 20 ${to.ip} 7000 < /run/data`);
      expect(await to.sh('mv /run/data.new /run/data; md5sum < /run/data')).toBe(sum);
    }
  });

  it('ends at the cluster: neither another one nor a host can be reached', async () => {
    const [one, other] = [await lab().seed(), await lab().seed()];
    const { clones } = await lab().fork(other, 2);
    const [first, second] = clones;
    if (!first || !second) throw new Error('no clones');
    expect(await pings(other, first.ip)).toBe(true);
    // The same addresses, another cluster: nobody has them there.
    expect(await pings(one, first.ip)).toBe(false);
    expect(await pings(one, second.ip)).toBe(false);
    // What arrives at the one master VM is not what was sent to the other: both are 10.0.0.1.
    await one.sh('nc -l -p 7000 > /run/got </dev/null 2>/dev/null & true');
    await other.sh('nc -l -p 7000 > /run/got </dev/null 2>/dev/null & usleep 100000; true');
    await second.sh(`echo hello | nc -w 5 ${other.ip} 7000`);
    expect(await other.file('/run/got')).toBe('hello');
    expect(await one.sh('cat /run/got')).toBe('');
    // Nor a host, not even with a route of the guest's own making.
    const script = `
      for ip; do
        (ping -c 1 -W 1 $ip && echo ping $ip; for port in ${SFLD_PORT} ${SFMD_PORT}; do nc -w 1 $ip $port </dev/null && echo tcp $ip; done) &
      done; wait
      for ip; do ip route add $ip/32 dev eth0; (ping -c 1 -W 1 $ip && echo ping $ip) & done; wait`;
    const addresses = lab().lab.hosts.map(({ address }) => address);
    for (const guest of [one, first, second]) {
      const answers = (await guest.run(['sh', '-c', script, 'sh', guest.ip, ...addresses])).split('\n');
      const reached = answers.filter((line) => /^(ping|tcp) /.test(line));
      expect(new Set(reached)).toEqual(new Set([`ping ${guest.ip}`])); // itself: so the script does look
    }
  });
});
