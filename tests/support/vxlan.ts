// VXLAN as a stranger to a cluster would make it, and a look at where it comes by on a host.

import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { guestIp, guestMac, type VmRef } from '@snowflock/protocol';
import { vni } from '@snowflock/network';

/** No VM has it in a test, so that no bridge learns a wrong place of one that is there. */
const NOBODY = 200;

const u16 = (value: number): string => value.toString(16).padStart(4, '0');
const hexIp = (vmid: number): string => Buffer.from(guestIp(vmid).split('.').map(Number)).toString('hex');
const hexMac = (ref: VmRef): string => guestMac(ref).replaceAll(':', '');

function checksum(header: string): string {
  const words = header.match(/.{4}/g) ?? [];
  const sum = words.reduce((total, word) => total + Number.parseInt(word, 16), 0);
  return u16(0xffff - ((sum & 0xffff) + (sum >> 16)));
}

/** In hexadecimal: a VXLAN header (RFC 7348) of the VM's cluster, and a frame in which a UDP datagram with `text` is sent to the VM. */
export function vxlanTo(to: VmRef, { port, text }: { readonly port: number; readonly text: string }): string {
  const size = Buffer.byteLength(text);
  const [before, after] = [
    `4500${u16(28 + size)}000000004011`,
    hexIp(NOBODY) + hexIp(to.vmid), // between them the checksum
  ];
  return [
    `08000000${vni(to.clusterid).toString(16).padStart(6, '0')}00`,
    `${hexMac(to)}${hexMac({ clusterid: to.clusterid, vmid: NOBODY })}0800`,
    before + checksum(before + after) + after,
    `${u16(port)}${u16(port)}${u16(8 + size)}0000`,
    Buffer.from(text).toString('hex'),
  ].join('');
}

/** Arguments: what to look for, as a regular expression. Prints DEVICE and what it found there, in either direction. */
const WATCH = `import re,socket,sys
s=socket.socket(socket.AF_PACKET,socket.SOCK_RAW,socket.htons(3))
print("ready",flush=True)
while True:
  data,(device,*_)=s.recvfrom(65535)
  for found in re.findall(sys.argv[1].encode(),data): print(device,found.decode(),flush=True)`;

/** Watches all devices of a network namespace for frames that hold a text. */
export class FrameWatch implements AsyncDisposable {
  readonly #process: ChildProcess;
  readonly #seen: { readonly device: string; readonly text: string }[] = [];

  private constructor(process: ChildProcess) {
    this.#process = process;
  }

  static async start(netns: string, pattern: string): Promise<FrameWatch> {
    const child = spawn('ip', ['netns', 'exec', netns, 'python3', '-c', WATCH, pattern], {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    const watch = new FrameWatch(child);
    const lines = createInterface(child.stdout);
    const ready = once(lines, 'line');
    lines.on('line', (line) => {
      const [device, text] = line.split(/ (.*)/);
      if (device !== undefined && text !== undefined) watch.#seen.push({ device, text });
    });
    await ready;
    return watch;
  }

  /** The devices by which `text` has come, and how often. */
  devices(text: string): { device: string; count: number }[] {
    const counts = new Map<string, number>();
    for (const each of this.#seen)
      if (each.text === text) counts.set(each.device, (counts.get(each.device) ?? 0) + 1);
    return [...counts].map(([device, count]) => ({ device, count }));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const closed = once(this.#process, 'close');
    this.#process.kill('SIGKILL');
    await closed;
  }
}
