// Namespaces for the tests of the router: a host with VMs of clusters on it (namespaces behind veth pairs), and machines outside.
//
//   VM ─ bridge ─ router ─ host 10.78.0.1 ═══ outside: 10.78.0.2 to .6 on one machine; .9 is another host of the system

import { spawn, type ChildProcess } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { createInterface } from 'node:readline';
import { guestIp, guestMac, ROUTER_IP, type RouterSettings } from '@snowflock/protocol';
import { runCommand, runBatch, tapName } from '../src/index.ts';

export const HOST_IP = '10.78.0.1';
export const outsideIp = (number: number): string => `10.78.0.${number}`;
const OUTSIDE = [2, 3, 4, 5, 6, 9];

/** Answers every name with 10.78.0.N for nN.example, with a time to live of 1 s, and counts. */
const NAME_SERVER = `import socket,sys
s=socket.socket(2,2); s.bind(("${outsideIp(2)}",53)); print("ready",flush=True)
while True:
  m,a=s.recvfrom(4096)
  q=m[12:m.index(0,12)+5]; n=int(chr(m[14]))
  s.sendto(m[:2]+b"\\x81\\x80\\0\\1\\0\\1\\0\\0\\0\\0"+q+b"\\xc0\\x0c\\0\\1\\0\\1\\0\\0\\0\\1\\0\\4"+bytes([10,78,0,n]),a)`;
/** Says its name to whoever connects to port 80, and sends back what comes to UDP port 7. */
const SERVERS = `import socket,threading,sys
def echo(u):
  while True: m,a=u.recvfrom(2048); u.sendto(m,a)
for address in sys.argv[2:] or [""]: # of many, the answer comes from the one that was asked
  u=socket.socket(2,2); u.bind((address,7)); threading.Thread(target=echo,args=[u],daemon=True).start()
l=socket.socket(); l.setsockopt(1,2,1); l.bind(("",80)); l.listen(64); print("ready",flush=True)
while True:
  c,a=l.accept(); c.sendall((sys.argv[1]+" "+a[0]).encode()); c.close()`;
const TCP = `import socket,sys
s=socket.create_connection((sys.argv[1],int(sys.argv[2])),2); s.settimeout(2); print(s.recv(99).decode())`;
const UDP = `import socket,sys
s=socket.socket(2,2); s.settimeout(1); s.connect((sys.argv[1],7)); s.send(b"x"); print(s.recv(9).decode())`;

export interface Vm {
  readonly netns: string;
  readonly clusterid: number;
  readonly vmid: number;
}

export class RouterWorld implements AsyncDisposable {
  readonly #tag = randomBytes(3).toString('hex');
  readonly #directory = mkdtempSync('/tmp/sfrt-');
  readonly #children: ChildProcess[] = [];
  readonly #names: string[] = [];
  readonly host = this.#name('h');
  readonly outside = this.#name('o');
  #orders: { child: ChildProcess; answers: AsyncIterator<string> } | undefined;

  #name(suffix: string): string {
    const name = `sfrt-${this.#tag}-${suffix}`;
    this.#names.push(name);
    return name;
  }

  async up(): Promise<void> {
    const { host, outside } = this;
    await runBatch('ip', [
      ...[host, outside].map((name) => `netns add ${name}`),
      `link add name eth0 netns ${host} type veth peer name eth0 netns ${outside}`,
    ]);
    const common = ['link set dev lo up', 'link set dev eth0 up'];
    await runBatch('ip', [...common, `addr add ${HOST_IP}/24 dev eth0`], { netns: host });
    await runBatch('ip', [...common, ...OUTSIDE.map((n) => `addr add ${outsideIp(n)}/24 dev eth0`)], {
      netns: outside,
    });
    await runCommand(['ip', 'netns', 'exec', host, 'sysctl', '-qw', 'net.ipv4.ip_forward=0']);
    await this.serve(outside, ['-c', SERVERS, 'outside', ...OUTSIDE.map(outsideIp)]);
    await this.serve(outside, ['-c', NAME_SERVER]);
    await this.serve(host, ['-c', SERVERS, 'host']);
    const driver = new URL('./router-host.ts', import.meta.url).pathname;
    const argv = ['netns', 'exec', host, process.execPath, driver, this.#directory, HOST_IP];
    const child = spawn('ip', argv, { stdio: ['pipe', 'pipe', 'inherit'] });
    this.#orders = { child, answers: createInterface({ input: child.stdout })[Symbol.asyncIterator]() };
  }

  /** One order of router-host.ts, done. */
  async order(order: object): Promise<unknown> {
    if (!this.#orders) throw new Error('the world is not up');
    this.#orders.child.stdin?.write(`${JSON.stringify(order)}\n`);
    const { value } = (await this.#orders.answers.next()) as { value?: unknown };
    const answer = JSON.parse(String(value)) as { ok: boolean; error?: string; value?: unknown };
    if (!answer.ok) throw new Error(`${answer.error}\n${this.log}`);
    return answer.value;
  }

  set(clusterid: number, settings: Partial<RouterSettings>): Promise<unknown> {
    const nameservers = [outsideIp(2)];
    const all = { whitelist: [], capMbit: null, nameservers, exposed: [], ...settings };
    return this.order({ do: 'set', clusterid, settings: all });
  }

  get log(): string {
    try {
      return readFileSync(`${this.#directory}/router.log`, 'utf8');
    } catch {
      return ''; // nothing was said
    }
  }

  /** A python program that serves; resolves when it says so. */
  async serve(netns: string, args: readonly string[]): Promise<void> {
    const child = spawn('ip', ['netns', 'exec', netns, 'python3', ...args], {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    this.#children.push(child);
    for await (const line of createInterface({ input: child.stdout })) if (line === 'ready') return;
    throw new Error(`a server in ${netns} has ended`);
  }

  /** Behind its cluster's bridge, with the address of its identity. */
  async vm(clusterid: number, vmid: number): Promise<Vm> {
    const netns = this.#name(`${clusterid}-${vmid}`);
    const tap = tapName({ clusterid, vmid });
    await runBatch('ip', [
      `netns add ${netns}`,
      `link add name ${tap} netns ${this.host} type veth peer name eth0 address ${guestMac({ clusterid, vmid })} netns ${netns}`,
    ]);
    await runBatch('ip', [`link set dev ${tap} master sfb${clusterid} up`], { netns: this.host });
    await runBatch(
      'ip',
      [
        'link set dev lo up',
        'link set dev eth0 up',
        `addr add ${guestIp(vmid)}/16 dev eth0`,
        `route add default via ${ROUTER_IP}`,
      ],
      { netns },
    );
    await this.serve(netns, ['-c', SERVERS, `sf-${clusterid}-${vmid}`]);
    return { netns, clusterid, vmid };
  }

  /** What it prints; '' when it fails. */
  async run(netns: string, ...argv: string[]): Promise<string> {
    const { status, stdout } = await runCommand(['ip', 'netns', 'exec', netns, ...argv], {
      timeoutMs: 30_000,
    });
    return status === 0 ? stdout.trim() : '';
  }

  tcp(netns: string, ip: string, port = 80): Promise<string> {
    return this.run(netns, 'python3', '-c', TCP, ip, String(port));
  }

  async reaches(netns: string, ip: string): Promise<string[]> {
    const [ping, tcp, udp] = await Promise.all([
      this.run(netns, 'sh', '-c', `busybox ping -c 1 -W 1 ${ip} >/dev/null && echo yes`),
      this.tcp(netns, ip),
      this.run(netns, 'python3', '-c', UDP, ip),
    ]);
    return [ping && 'icmp', tcp && 'tcp', udp && 'udp'].filter((each) => each !== '');
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const { child } = this.#orders ?? {};
    if (child) {
      const gone = new Promise((resolve) => child.once('close', resolve));
      child.stdin?.end();
      await gone;
    }
    for (const each of this.#children) each.kill('SIGKILL');
    await runBatch(
      'ip',
      this.#names.map((name) => `netns del ${name}`),
      { force: true },
    );
    rmSync(this.#directory, { recursive: true, force: true });
  }
}
