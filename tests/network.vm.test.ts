// Two clusters over two hosts, and a machine outside: who reaches whom, and how. What a VM may send frame by frame, and the router by
// itself, are tested in packages/network.

import { spawn, type ChildProcess } from 'node:child_process';
import { createInterface } from 'node:readline';
import { bridgeName, parseLinkName, runBatch, tapMac, tapName, VXLAN_PORT } from '@snowflock/network';
import { guestIp6, ROUTER_IP } from '@snowflock/protocol';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { eventually } from './support/deadline.ts';
import { compileForGuest } from './support/guest-programs.ts';
import type { Guest } from './support/guest.ts';
import { hostCommand } from './support/host-command.ts';
import { requireVm } from './require-vm.ts';
import { sharedLab } from './support/test-lab.ts';
import { FrameWatch, vxlanTo } from './support/vxlan.ts';

const RUN = requireVm();
const [ALLOWED, OTHER] = ['10.231.0.200', '10.231.0.201'];
const [HOST1, HOST2] = ['10.231.0.1', '10.231.0.2'];
const SFLD_PORT = 0xc01f;
const SFMD_PORT = 0xf10c;
/** Where the VM of another cluster listens. */
const INNER_PORT = 7000;
const SEND = `import socket,sys
socket.socket(2,2).sendto(bytes.fromhex(sys.argv[1]),(sys.argv[2],${VXLAN_PORT}))`;
const OUTSIDE = `import socket,sys,threading
l=socket.socket(); l.setsockopt(1,2,1); l.bind(("",80)); l.listen(64)
def names(a):
  u=socket.socket(2,2); u.bind((a,53))
  while True:
    m,f=u.recvfrom(2048); q=m[12:m.index(0,12)+5]
    u.sendto(m[:2]+b"\\x81\\x80\\0\\1\\0\\1\\0\\0\\0\\0"+q+b"\\xc0\\x0c\\0\\1\\0\\1\\0\\0\\0\\1\\0\\4"+bytes([10,9,9,9]),f)
for a in ("${ALLOWED}","${OTHER}"): threading.Thread(target=names,args=[a],daemon=True).start()
print("ready",flush=True)
while True: c,a=l.accept(); c.sendall(b"outside"); c.close()`;

describe.skipIf(!RUN)('the network of clusters', () => {
  const lab = sharedLab({
    ...{ hosts: 2, cpus: 6, ramMib: 2048 },
    sfmdOptions: [`network_whitelist = ['${ALLOWED}', '${HOST1}', '${HOST2}']`, 'bandwidth_cap = 100'],
  });
  let outside: string;
  let server: ChildProcess;

  beforeAll(async () => {
    outside = `sf-${lab().lab.name}-outside`;
    await runBatch('ip', [
      `netns add ${outside}`,
      `link add name out netns sf-${lab().lab.name}-sw type veth peer name eth0 netns ${outside}`,
    ]);
    await runBatch('ip', ['link set dev out master br0 up'], { netns: `sf-${lab().lab.name}-sw` });
    await runBatch(
      'ip',
      [
        ...['lo', 'eth0'].map((device) => `link set dev ${device} up`),
        ...[ALLOWED, OTHER].map((ip) => `addr add ${ip}/24 dev eth0`),
        // as if it knew its way into the clusters
        `route add 10.0.0.0/16 via ${HOST1}`,
        `route add 240.0.0.0/7 via ${HOST1}`,
      ],
      { netns: outside },
    );
    server = spawn('ip', ['netns', 'exec', outside, 'python3', '-c', OUTSIDE], {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    if (server.stdout) for await (const line of createInterface(server.stdout)) if (line === 'ready') break;
  });

  afterAll(async () => {
    server.kill('SIGKILL');
    await runBatch('ip', [`netns del ${outside}`], { force: true });
  });

  /** Which of `proto ip` answer; all asked at once. */
  const answering = async (from: Guest, ips: readonly string[]): Promise<string[]> => {
    const script = `
      for ip; do
        (ping -c 1 -W 2 $ip >/dev/null 2>&1 && echo icmp $ip) &
        for port in 80 ${SFLD_PORT} ${SFMD_PORT}; do (nc -w 2 $ip $port </dev/null >/dev/null 2>&1 && echo tcp $ip) & done
        (timeout 3 nslookup -type=a some.name $ip 2>&1 | grep -q 10.9.9.9 && echo udp $ip) &
      done; wait`;
    const lines = (await from.run(['sh', '-c', script, 'sh', ...ips])).split('\n').filter(Boolean);
    return [...new Set(lines)].sort();
  };
  const all = (ip: string): string[] => ['icmp', 'tcp', 'udp'].map((proto) => `${proto} ${ip}`);
  const fromOutside = async (ip: string, port: number): Promise<string> => {
    const { stdout } = await lab().lab.exec(2, [
      ...['sh', '-c', `busybox timeout 5 busybox nc -w 3 ${ip} ${port} </dev/null`],
    ]);
    return stdout.trim();
  };
  const expose = (...args: string[]) =>
    hostCommand('snowflock', ['expose', ...args, '--socket', lab().lab.hosts[1]?.socketPath ?? '']);

  it('reaches the whitelist and nothing else, from every VM, whatever it does', async () => {
    const [one, two] = [await lab().seed(undefined, { on: 1 }), await lab().seed(undefined, { on: 1 })];
    const { clones } = await lab().fork(one, 2);
    const [first] = clones;
    const away = (await Promise.all(clones.map(async (c) => ({ c, k: await lab().hostOf(c) })))).find(
      ({ k }) => k === 2,
    )?.c;
    if (!first || !away) throw new Error('no clone on the other host');
    const ips = [ALLOWED, OTHER, HOST1, HOST2, ROUTER_IP, '240.0.0.0', '240.0.0.2'];
    await eventually(20_000, 'the router to route', async () => {
      expect(await answering(one, [ALLOWED])).toEqual(all(ALLOWED));
    });
    for (const guest of [one, two, away])
      expect(await answering(guest, ips)).toEqual([...all(ALLOWED), `icmp ${ROUTER_IP}`].sort());
    // names of the cluster
    const names = `for n in sf-${one.clusterid}-2 router sf-${two.clusterid}-0 example.org; do nslookup $n ${ROUTER_IP} 2>/dev/null | sed -n '/^Name/,$s/^Address.*: *\\(10[^ ]*\\)$/\\1/p'; done`;
    expect((await away.sh(names)).split('\n')).toEqual(['10.0.0.3', ROUTER_IP]);
    // A clone that takes another's addresses is heard by nobody, and takes nothing from whom they belong to.
    const reached = async (from: Guest, ip: string): Promise<boolean> =>
      (await from.exec(['ping', '-c', '1', '-W', '2', ip])).status === 0;
    const [victim, thief] = [first, clones.find((each) => each !== first)];
    if (!thief) throw new Error('one clone only');
    await thief.sh(
      `ip addr add ${victim.ip}/16 dev eth0; arping -c 2 -A -I eth0 ${victim.ip} >/dev/null 2>&1; true`,
    );
    expect((await thief.exec(['ping', '-c', '1', '-W', '2', '-I', victim.ip, one.ip])).status).not.toBe(0);
    expect(await reached(one, victim.ip)).toBe(true);
    await thief.sh(`ip addr del ${victim.ip}/16 dev eth0`);
    expect(await reached(thief, one.ip)).toBe(true);
    await thief.sh('ip link set dev eth0 address 52:00:00:00:ff:fe');
    expect(await reached(thief, one.ip)).toBe(false);
    expect((await thief.exec(['ping6', '-c', '1', '-W', '2', guestIp6(0)])).status).not.toBe(0);
    expect(await answering(one, [ALLOWED])).toEqual(all(ALLOWED));
  });

  it('leads ports of the host to VMs, over a restart of sfld and a router that is killed, until the VM ends', async () => {
    const master = await lab().seed(undefined, { on: 1 });
    const { clones } = await lab().fork(master, 2);
    const [clone, other] = clones;
    if (!clone || !other) throw new Error('no clones');
    const serve = '(while true; do echo $(hostname) | nc -l -p 80; done) >/dev/null 2>&1 & true';
    for (const guest of clones) await guest.sh(serve);
    const given = await expose(clone.name, '80:8080');
    expect(given).toMatchObject({ status: 0, out: `${HOST1}:8080 on host1\n` });
    expect(await expose(other.name, '80')).toMatchObject({ status: 0, out: `${HOST1}:20000 on host1\n` });
    expect(await expose(master.name, '80:8080')).toMatchObject({ status: 1 });
    const name = `sf-${clone.clusterid}-${clone.vmid}`;
    expect(await fromOutside(HOST1, 8080)).toBe(name);
    expect((await expose('--list', clone.name)).out).toMatch(
      /^VM +PORT.*\n0*\d+:\d+ +80 +10\.231\.0\.1:8080 +host1\n$/,
    );
    await lab().killDaemon(1, 'sfld');
    expect(await fromOutside(HOST1, 8080)).toBe(name);
    await lab().lab.startDaemon(1, 'sfld');
    await lab().hostsUp();
    expect(await fromOutside(HOST1, 8080)).toBe(name);
    // The router is killed, and there again with what was asked for. Meanwhile the cluster is closed: packages/network/test/router.vm.test.ts.
    await lab().killOne(1, 'router/main.ts');
    await eventually(30_000, 'the router to be there again', async () => {
      expect(await answering(clone, [ALLOWED])).toEqual(all(ALLOWED));
      expect(await fromOutside(HOST1, 8080)).toBe(name);
    });
    expect(await expose('--remove', other.name, '80')).toMatchObject({ status: 0, err: '' });
    expect(await fromOutside(HOST1, 20_000)).toBe('');
    await clone.sh('sfexit >/dev/null 2>&1 & true').catch(() => undefined);
    await eventually(20_000, 'its port to go with it', async () => {
      expect((await expose('--list')).out.split('\n')).toHaveLength(2);
    });
    expect(await fromOutside(HOST1, 8080)).toBe('');
  });

  it('takes no VXLAN from a VM, for whichever cluster, and by whichever way it is sent', async () => {
    const [from, other] = [await lab().seed(), await lab().seed()];
    const [program, code] = ['/run/datagrams', await compileForGuest('datagrams')];
    for (const vm of [from, other]) await vm.put(program, code);
    const { clones } = await lab().fork(other, 2);
    const to = await Promise.all(clones.map(async (vm) => ({ vm, k: await lab().hostOf(vm) })));
    expect(to.map(({ k }) => k).sort()).toEqual([1, 2]);
    await using watches = new AsyncDisposableStack();
    const watched: FrameWatch[] = [];
    for (const { netns } of lab().lab.hosts)
      watched.push(watches.use(await FrameWatch.start(netns, 'by [a-z]+ for [0-9]+\\.')));
    const text = (way: string, vm: Guest): string => `by ${way} for ${vm.vmid}.`;
    const vxlan = (way: string, vm: Guest): string => vxlanTo(vm, { port: INNER_PORT, text: text(way, vm) });
    /** How often it came by each device of a cluster, on both hosts. */
    const seen = (way: string, vm: Guest, { clusterid }: Guest): Record<string, number> =>
      Object.fromEntries(
        watched
          .flatMap((watch, index) => watch.devices(text(way, vm)).map((each) => ({ ...each, k: index + 1 })))
          .filter(({ device }) => parseLinkName(device)?.clusterid === clusterid)
          .map(({ device, count, k }) => [`${device} ${k}`, count]),
      );
    for (const { vm } of to)
      await vm.sh(`${program} ${INNER_PORT} </dev/null >/run/got 2>&1 & usleep 100000; true`);

    const k = await lab().hostOf(from);
    const tap = `${tapName(from)} ${k}`;
    const send = async (way: string, addresses: readonly string[]): Promise<void> => {
      for (const { vm } of to) {
        const argv = [program, String(VXLAN_PORT), vxlan(way, vm), ...addresses];
        expect(await from.run(argv)).toBe(addresses.map((ip) => `${ip} sent`).join('\n'));
        await eventually(10_000, 'the datagrams to leave the VM', () => {
          expect(seen(way, vm, from)).toMatchObject({ [tap]: addresses.length });
        });
      }
    };
    await eventually(20_000, 'the router', () => from.run(['ping', '-c', '1', '-W', '2', ROUTER_IP]));
    await send('router', [HOST1, HOST2, ROUTER_IP]);
    await send('broadcast', ['10.0.255.255', '255.255.255.255']);
    // Without the router: the bridge takes the address of its end of the tap for its own.
    for (const host of [HOST1, HOST2])
      await from.sh(`ip route add ${host}/32 dev eth0 && arp -i eth0 -s ${host} ${tapMac(from)}`);
    await send('bridge', [HOST1, HOST2]);

    // What a host sends does arrive.
    for (const { vm, k } of to) {
      const [sender, host] = k === 1 ? [2, HOST1] : [1, HOST2];
      await lab().lab.exec(sender, ['python3', '-c', SEND, vxlan('host', vm), host]);
      await eventually(10_000, 'the frame of a host', async () => {
        expect(seen('host', vm, other)).toMatchObject({ [`${tapName(vm)} ${k}`]: 1 });
        expect(await vm.sh('cat /run/got')).toBe(text('host', vm));
      });
    }
    for (const { vm } of to)
      for (const way of ['router', 'broadcast', 'bridge']) {
        expect(seen(way, vm, other)).toEqual({});
        // Of the bridge, as a device, there is only what is for the host itself.
        expect(Object.keys(seen(way, vm, from))).not.toContain(`${bridgeName(from.clusterid)} ${k}`);
      }
  });
});
