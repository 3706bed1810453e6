// A clone that sends to another one, with busybox's tools: every image has them.

import { guestIp, formatVmRef, type ControlClient, type VmRef } from '@snowflock/protocol';
import { execInVm } from '@snowflock/sdk';

const PORT = 5001;
const COMMAND_TIMEOUT_MS = 120_000;

export class Clone {
  readonly host: string;
  readonly #client: ControlClient;
  readonly #ref: VmRef;

  constructor(client: ControlClient, ref: VmRef, host: string) {
    this.#client = client;
    this.#ref = ref;
    this.host = host;
  }

  get ip(): string {
    return guestIp(this.#ref.vmid);
  }

  /** How long so many MiB take over one TCP connection, in ms, by the sender's clock: until the receiver has closed it, having read all. */
  async sends(to: Clone, sizeMib: number): Promise<number> {
    // an end of input would be the end of the connection
    const input = '/tmp/input';
    const listens = to.run(`[ -p ${input} ] || mkfifo ${input}; nc -l -p ${PORT} 3<>${input} <&3 | wc -c`);
    await to.run(`until netstat -ltn | grep -q ':${PORT} '; do usleep 10000; done`);
    const uptime = `read up rest </proc/uptime; echo $up`;
    const send = `dd if=/dev/zero bs=64k count=${sizeMib * 16} 2>/dev/null | nc ${to.ip} ${PORT} >/dev/null`;
    const [begin, end] = (await this.run(`${uptime}; ${send}; ${uptime}`)).split('\n').map(Number);
    const got = Number(await listens);
    if (got !== sizeMib * 2 ** 20) throw new Error(`${got} bytes came of ${sizeMib} MiB`);
    return ((end ?? Number.NaN) - (begin ?? Number.NaN)) * 1000;
  }

  /** On average of so many pings, one after the other. */
  async roundTripUs(to: Clone, pings: number): Promise<number> {
    const said = await this.run(`ping -q -c ${pings} -i 0.02 -W 5 ${to.ip}`);
    const [, average] = /min\/avg\/max = [\d.]+\/([\d.]+)\//.exec(said) ?? [];
    if (average === undefined) throw new Error(`ping said: ${said}`);
    return Number(average) * 1000;
  }

  async run(script: string): Promise<string> {
    const vm = formatVmRef(this.#ref);
    const signal = AbortSignal.timeout(COMMAND_TIMEOUT_MS);
    const { status, stdout, stderr } = await execInVm(this.#client, vm, ['sh', '-c', script], { signal });
    if (status !== 0) throw new Error(`VM ${vm}: ${script}: status ${status}: ${stderr.toString()}`);
    return stdout.toString().trim();
  }
}
