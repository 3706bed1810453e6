// Ports of VMs that operators expose: done on the host of the cluster's router, whichever host is asked and wherever the VM is.

import {
  formatVmRef,
  NoReply,
  PortExposed,
  SnowflockError,
  SystemState,
  type VmRef,
} from '@snowflock/protocol';
import type { HostDaemon } from './host-daemon.ts';
import { atVmsHost } from './vm-locations.ts';

/** A router takes new settings, on a loaded host. */
const EXPOSE_TIMEOUT_MS = 40_000;
const STATE_TIMEOUT_MS = 10_000;

export interface PortOfVm {
  readonly ref: VmRef;
  readonly port: number;
  /** Another host's sfld has sent the caller here. */
  readonly relayed: boolean;
  readonly signal: AbortSignal;
}

export async function exposePort(
  daemon: HostDaemon,
  asked: PortOfVm & { readonly hostPort: number | undefined },
): Promise<PortExposed> {
  const { ref, port, hostPort, signal } = asked;
  const { host, address, routers } = daemon.context;
  if (!routers.has(ref.clusterid)) {
    const body = hostPort === undefined ? {} : { hostPort };
    const options = {
      method: 'PUT',
      body,
      reply: PortExposed,
      timeoutMs: EXPOSE_TIMEOUT_MS,
      signal,
    } as const;
    return atRoutersHost(daemon, asked, (client, path) => client.request({ ...options, path }));
  }
  await assertRuns(daemon, ref);
  const given = await routers.expose(ref, { port, hostPort });
  await daemon.context.reportTurn.soon();
  return { host, address, hostPort: given };
}

export async function hidePort(daemon: HostDaemon, asked: PortOfVm): Promise<void> {
  const { ref, port, signal } = asked;
  const { routers } = daemon.context;
  if (!routers.has(ref.clusterid)) {
    const options = { method: 'DELETE', reply: NoReply, timeoutMs: EXPOSE_TIMEOUT_MS, signal } as const;
    return atRoutersHost(daemon, asked, (client, path) => client.request({ ...options, path }));
  }
  await routers.hide(ref, port);
  await daemon.context.reportTurn.soon();
}

/** Of the cluster's master VM. */
function atRoutersHost<T>(
  daemon: HostDaemon,
  { ref, port, relayed }: PortOfVm,
  ask: (client: Parameters<Parameters<typeof atVmsHost<T>>[2]>[0], path: string) => Promise<T>,
): Promise<T> {
  const masterVm = { clusterid: ref.clusterid, vmid: 0 };
  if (relayed || daemon.vm(masterVm))
    throw new SnowflockError(
      'no-such-vm',
      `the router of cluster ${ref.clusterid} is not on host ${daemon.context.host}`,
    );
  return atVmsHost(daemon, masterVm, (client) =>
    ask(client, `/v1/vms/${formatVmRef(ref)}/ports/${port}?relayed=1`),
  );
}

async function assertRuns(daemon: HostDaemon, ref: VmRef): Promise<void> {
  if (daemon.vm(ref)) return;
  const { clusters } = await daemon.context.masterDaemon.request({
    method: 'GET',
    path: '/v1/state',
    reply: SystemState,
    timeoutMs: STATE_TIMEOUT_MS,
  });
  const vm = clusters
    .find((each) => each.clusterid === ref.clusterid)
    ?.vms.find((each) => each.vmid === ref.vmid);
  if (vm?.status === 'running' || vm?.status === 'booting') return;
  throw new SnowflockError('no-such-vm', `there is no VM ${formatVmRef(ref)} that runs; sfstate lists them`);
}
