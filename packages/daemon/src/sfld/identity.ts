// The identity that a VM is given at boot and at each fork.

import { randomBytes } from 'node:crypto';
import {
  CLUSTER_NETWORK,
  CLUSTER_NETWORK_6,
  GUEST_MTU,
  guestHostname,
  guestIp,
  guestIp6,
  guestMac,
  ROUTER_IP,
  type GuestIdentity,
  type VmRef,
} from '@snowflock/protocol';

/** Fed to the guest's random generator. */
const ENTROPY_BYTES = 64;

export function makeIdentity(
  { clusterid, vmid }: VmRef,
  fork: Pick<GuestIdentity, 'nclones' | 'vcpus' | 'ticket'>,
): GuestIdentity {
  const vm = { clusterid, vmid };
  return {
    ...vm,
    ...fork,
    hostname: guestHostname(vm),
    ip: guestIp(vm.vmid),
    prefix: CLUSTER_NETWORK.prefix,
    ip6: guestIp6(vm.vmid),
    prefix6: CLUSTER_NETWORK_6.prefix,
    gateway: ROUTER_IP,
    resolver: ROUTER_IP,
    mac: guestMac(vm),
    mtu: GUEST_MTU,
    timeNs: BigInt(Date.now()) * 1_000_000n + BigInt(Math.trunc((performance.now() % 1) * 1e6)),
    entropy: randomBytes(ENTROPY_BYTES),
  };
}
