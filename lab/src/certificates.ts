// The lab's certificate authority, sfmd's certificate and one per host, made as `snowflock init` and `enroll` make them.

import { Authority, identityFiles, writeIdentity } from '@snowflock/authority';
import { authorityDir, tlsDir } from './config.ts';
import { hostAddress, hostName } from './names.ts';

/** Writes LAB/authority, LAB/host-K/tls/{ca.crt,host.crt,host.key} and LAB/host-1/tls/sfmd.{crt,key}. */
export async function makeCertificates(options: {
  readonly name: string;
  readonly hosts: number;
  readonly signal?: AbortSignal | undefined;
}): Promise<void> {
  const { name, hosts, signal } = options;
  const authority = await Authority.create(authorityDir(name), { name: `lab-${name}` });
  const make = async (k: number, role: 'master' | 'host'): Promise<void> => {
    signal?.throwIfAborted();
    const altNames = [hostName(k), hostAddress(k)];
    const identity = await authority.newIdentity({ role, name: hostName(k), altNames });
    await writeIdentity(identityFiles(tlsDir(name, k), role === 'master' ? 'sfmd' : 'host'), identity);
  };
  await make(1, 'master');
  // One at a time: some 30 ms each.
  for (let k = 1; k <= hosts; k++) await make(k, 'host');
}
