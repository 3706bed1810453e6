// Forks and merges that an operator asks for, carried out on the VM's host as if the VM had asked. A fork is made with a ticket of the VM, but without a call of its guest. The guest's agent holds it, and its
// clones take on identities, as in a fork that the guest asked for; programs in it go on and are told nothing.
//
// A guest without an agent cannot become another machine: it is only forked if its clones stay off the network.

import { randomUUID } from 'node:crypto';
import {
  formatVmRef,
  ForkVmReply,
  NoReply,
  SnowflockError,
  TicketGrant,
  type ForkVm,
  type MergeVm,
  type VmRef,
} from '@snowflock/protocol';
import { askMaster } from './ask-master.ts';
import type { CloneVm } from './clone-vm.ts';
import type { HostDaemon } from './host-daemon.ts';
import type { MasterVm } from './master-vm.ts';
import { ownForkId } from './vm-forks.ts';
import { atVmsHost } from './vm-locations.ts';

const TICKET_TIMEOUT_MS = 10_000;
/** Redemption, freeze and launch on all hosts. */
const FORK_TIMEOUT_MS = 120_000;
/** Clones are destroyed on all hosts. */
const MERGE_TIMEOUT_MS = 60_000;

export interface FromHost<T> {
  readonly ask: T;
  /** Another host's sfld has sent the caller here. */
  readonly relayed: boolean;
  readonly signal: AbortSignal;
}

export async function forkFromHost(
  daemon: HostDaemon,
  ref: VmRef,
  { ask, relayed, signal }: FromHost<ForkVm>,
): Promise<ForkVmReply> {
  const vm = daemon.vm(ref);
  if (vm) return forkHere(daemon, vm, ask);
  const name = formatVmRef(ref);
  if (relayed) throw notHere(daemon, name);
  return atVmsHost(daemon, ref, (client) =>
    client.request({
      method: 'POST',
      path: `/v1/vms/${name}/fork?relayed=1`,
      body: ask,
      reply: ForkVmReply,
      timeoutMs: FORK_TIMEOUT_MS,
      signal,
    }),
  );
}

export async function mergeFromHost(
  daemon: HostDaemon,
  ref: VmRef,
  { ask, relayed, signal }: FromHost<MergeVm>,
): Promise<void> {
  const merge = { method: 'POST', reply: NoReply, timeoutMs: MERGE_TIMEOUT_MS, signal } as const;
  if (daemon.vm(ref)) {
    const which = ask.ticket === undefined ? '' : `/tickets/${ask.ticket}`;
    const path = `/v1/clusters/${ref.clusterid}${which}/merge?vm=${ref.vmid}`;
    return askMaster(daemon.context.masterDaemon, { ...merge, path });
  }
  const name = formatVmRef(ref);
  if (relayed) throw notHere(daemon, name);
  const path = `/v1/vms/${name}/merge?relayed=1`;
  return atVmsHost(daemon, ref, (client) => client.request({ ...merge, path, body: ask }));
}

function notHere({ context }: HostDaemon, name: string): SnowflockError {
  return new SnowflockError('no-such-vm', `VM ${name} is not on host ${context.host}`);
}

async function forkHere(
  { context }: HostDaemon,
  vm: MasterVm | CloneVm,
  { nclones, min = nclones, isolated }: ForkVm,
): Promise<ForkVmReply> {
  const name = formatVmRef(vm.ref);
  const held = await vm.port.agentAnswers();
  if (!held && !isolated)
    throw new SnowflockError(
      'no-agent',
      `no SnowFlock agent answers in VM ${name}: its guest has none, or still boots. Its clones could not be told who they are, ` +
        'and would meet on the network as the same machine; fork it with --isolated, which keeps them off the network',
    );
  const tickets = `/v1/clusters/${vm.ref.clusterid}/tickets`;
  const grant = await askMaster(context.masterDaemon, {
    method: 'POST',
    path: `${tickets}?vm=${vm.ref.vmid}`,
    body: { nclones, procs: false, min, block: false, requestId: randomUUID() },
    reply: TicketGrant,
    timeoutMs: TICKET_TIMEOUT_MS,
  });
  const { ticket } = grant;
  if (ticket === null)
    throw new SnowflockError(
      'no-resources',
      `there is no room for ${min} clones of VM ${name} at the moment; sfstate shows what is free`,
    );
  try {
    const forkId = ownForkId();
    const forked = await vm.forks.fork({ ticket, forkId, held, isolated });
    const clones = forked.map(({ vmid, ...clone }) => ({
      vm: formatVmRef({ clusterid: vm.ref.clusterid, vmid }),
      ...clone,
    }));
    return { ticket, clones };
  } catch (error) {
    // Unless it was redeemed; then it has ended with its fork.
    const dispose = { method: 'DELETE' as const, path: `${tickets}/${ticket}?vm=${vm.ref.vmid}` };
    await context.masterDaemon
      .request({ ...dispose, reply: NoReply, timeoutMs: TICKET_TIMEOUT_MS })
      .catch(() => undefined);
    throw error;
  }
}
