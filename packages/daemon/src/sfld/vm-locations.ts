// Where VMs of other hosts are: what concerns one is asked of the sfld that has it.

import {
  formatVmRef,
  SnowflockError,
  SystemState,
  type ControlClient,
  type VmRef,
} from '@snowflock/protocol';
import type { HostDaemon, VmLocation } from './host-daemon.ts';

const STATE_TIMEOUT_MS = 10_000;
/** VMs elsewhere whose place is remembered; forgetting costs one question to sfmd. */
const LOCATIONS_MAX = 4096;

/** A VM stays where it is, so where it was found once is asked first: it can be reached while sfmd cannot. */
export async function atVmsHost<T>(
  daemon: HostDaemon,
  ref: VmRef,
  ask: (client: ControlClient) => Promise<T>,
): Promise<T> {
  const name = formatVmRef(ref);
  const askAt = ({ host, address, sfldPort }: VmLocation): Promise<T> =>
    ask(daemon.context.peers.client({ host, address, port: sfldPort }));
  const known = daemon.locations.get(name);
  if (known) {
    try {
      return await askAt(known);
    } catch (error) {
      if (!(error instanceof SnowflockError) || !['no-such-vm', 'host-down'].includes(error.code))
        throw error;
      daemon.locations.delete(name);
    }
  }
  const found = await locate(daemon, ref);
  if (daemon.locations.size >= LOCATIONS_MAX) daemon.locations.clear();
  daemon.locations.set(name, found);
  return askAt(found);
}

async function locate(daemon: HostDaemon, ref: VmRef): Promise<VmLocation> {
  const state = await daemon.context.masterDaemon.request({
    method: 'GET',
    path: '/v1/state',
    reply: SystemState,
    timeoutMs: STATE_TIMEOUT_MS,
  });
  const name = `${ref.clusterid}:${ref.vmid}`;
  const vm = state.clusters
    .find((one) => one.clusterid === ref.clusterid)
    ?.vms.find((one) => one.vmid === ref.vmid);
  if (!vm) throw new SnowflockError('no-such-vm', `there is no VM ${name}; sfstate lists them`);
  if (vm.status !== 'running' && vm.status !== 'booting')
    throw new SnowflockError('no-such-vm', `VM ${name} is ${vm.status}${vm.reason ? `: ${vm.reason}` : ''}`);
  const host = state.hosts.find((one) => one.host === vm.host);
  if (!host?.address || !host.sfldPort || host.host === daemon.context.host)
    throw new SnowflockError(
      'host-down',
      `VM ${name} should run on host ${vm.host}, which cannot be reached`,
    );
  return { host: host.host, address: host.address, sfldPort: host.sfldPort };
}
