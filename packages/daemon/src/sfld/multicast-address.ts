// Which address of this host pages for many hosts come in at and go out of: that of the second name in cluster_hosts.

import { isIPv4 } from 'node:net';
import {
  type MulticastHeard,
  resolveHostAddress,
  toSnowflockError,
  type TryMulticast,
} from '@snowflock/protocol';
import { tryMulticast } from '@snowflock/replication';
import type { HostContext } from './context.ts';

/** Undefined: pages go by unicast, because sfmd wants it so, or because the name leads nowhere. */
export async function multicastAddressOf(
  { host, address: ownAddress, log }: Pick<HostContext, 'host' | 'address' | 'log'>,
  name: string | undefined,
): Promise<string | undefined> {
  if (name === undefined) return undefined;
  if (name === host) return isIPv4(ownAddress) ? ownAddress : undefined;
  try {
    const address = await resolveHostAddress(name);
    if (isIPv4(address)) return address;
    log.warn({ name, address }, 'multicast is IPv4 only; pages go by unicast');
  } catch (thrown) {
    const reason = toSnowflockError(thrown).message;
    log.warn(
      { name, reason },
      "this host's multicast name in cluster_hosts leads nowhere; pages go by unicast",
    );
  }
  return undefined;
}

/** Sends or listens, as sfmd asks for it; a host without an address for multicast hears nothing. */
export async function hearMulticast(
  context: Pick<HostContext, 'host' | 'address' | 'log'>,
  { keyHex, multicastHost, sends, listenMs }: TryMulticast,
): Promise<MulticastHeard> {
  const address = await multicastAddressOf(context, multicastHost);
  if (address === undefined) return { packetBytes: 0 };
  const packetBytes = await tryMulticast({ key: Buffer.from(keyHex, 'hex'), address, sends, listenMs });
  return { packetBytes };
}
