// Where the VMs of a ticket are by now, asked of sfmd: a VM may have been migrated since a host was told.

import { SystemState, type SendVm } from '@snowflock/protocol';
import type { HostContext } from './context.ts';

const STATE_TIMEOUT_MS = 10_000;

type Places = Pick<HostContext, 'masterDaemon'>;

async function find(context: Places, ticket: string) {
  const state = await context.masterDaemon.request({
    method: 'GET',
    path: '/v1/state',
    reply: SystemState,
    timeoutMs: STATE_TIMEOUT_MS,
  });
  for (const cluster of state.clusters) {
    const found = cluster.tickets.find((each) => each.ticket === ticket);
    if (found) return { state, cluster, found };
  }
  return null;
}

/** Of the VM that the ticket is of; null: it is over, or its host is not known. */
export async function ownersHost(context: Places, ticket: string): Promise<SendVm['to'] | null> {
  const at = await find(context, ticket);
  const owner = at?.cluster.vms.find(({ vmid }) => vmid === at.found.owner);
  const host = at?.state.hosts.find((each) => each.host === owner?.host);
  if (!host?.address || !host.sfldPort) return null;
  return { host: host.host, address: host.address, sfldPort: host.sfldPort };
}

/** The host that runs a clone of the ticket; null: none does. */
export async function clonesHost(context: Places, ticket: string, vmid: number): Promise<string | null> {
  const at = await find(context, ticket);
  return at?.found.clones.find((each) => each.vmid === vmid)?.host ?? null;
}
