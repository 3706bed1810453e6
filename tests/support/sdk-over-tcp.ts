// On a lab's host, with an operator's certificate: what the SDK sees of the system over TCP. Arguments: the folder and name of
// the certificate, and VMs. Prints one JSON object.

import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { MASTER_PORT_DEFAULT } from '@snowflock/protocol';
import { System } from '@snowflock/sdk';

const [dir = '', name = '', ...vms] = process.argv.slice(2);
const read = (file: string): Buffer => readFileSync(join(dir, file));
await using system = System.connect({
  address: 'host1',
  host: 'host1',
  port: MASTER_PORT_DEFAULT,
  tls: { ca: read('ca.crt'), cert: read(`${name}.crt`), key: read(`${name}.key`) },
});
const { hosts } = await system.state();
const hostnames = [];
for (const vm of vms) hostnames.push((await system.vm(vm).exec(['hostname'])).stdout.toString().trim());
process.stdout.write(JSON.stringify({ hosts: hosts.map(({ host }) => host), hostnames }));
