// What a host may speak for: itself, and the clusters that it runs VMs of. Another host's certificate opens nothing of them.

import type { SystemData } from '@snowflock/cluster';
import { SnowflockError, type RouteSpec } from '@snowflock/protocol';
import type { Peer } from '../peer.ts';

interface Asked {
  readonly peer: Peer;
  readonly params: unknown;
  readonly query: unknown;
}

/** Throws 'unauthorized'. What does not exist is not protected: the route itself says so. */
export function assertHostScope(system: SystemData, route: RouteSpec, { peer, params, query }: Asked): void {
  if (route.hostScope === undefined || peer.role !== 'host') return;
  const { vm } = (query ?? {}) as { vm?: number };
  const asked = { vmid: vm, ...(params as { host?: string; clusterid?: number; vmid?: number }) };
  if (route.hostScope === 'own-name') {
    if (peer.isHost(asked.host ?? '')) return;
    throw new SnowflockError(
      'unauthorized',
      `the caller's certificate is for host '${peer.name}', which may not speak for '${asked.host ?? ''}'`,
    );
  }
  const vms = Object.values(system.clusters[asked.clusterid ?? -1]?.vms ?? {});
  const concerned = asked.vmid === undefined ? vms : vms.filter(({ vmid }) => vmid === asked.vmid);
  if (concerned.length === 0 || concerned.some(({ host }) => peer.isHost(host))) return;
  const what =
    asked.vmid === undefined ? `cluster ${asked.clusterid}` : `VM ${asked.clusterid}:${asked.vmid}`;
  throw new SnowflockError(
    'unauthorized',
    `${what} has nothing on host '${peer.name}', which may not speak for it`,
  );
}
