// The identity that a VM is given at boot and at each fork.

import { randomBytes } from 'node:crypto';
import {
  CLUSTER_NETWORK,
  GUEST_MTU,
  guestHostname,
  guestIp,
  guestMac,
  type GuestIdentity,
  type VmRef,
} from '@snowflock/protocol';

/** Fed to the guest's random generator. */
const ENTROPY_BYTES = 64;

export function makeIdentity(vm: VmRef, nclones: number): GuestIdentity {
  return {
    ...vm,
    nclones,
    hostname: guestHostname(vm),
    ip: guestIp(vm.vmid),
    prefix: CLUSTER_NETWORK.prefix,
    mac: guestMac(vm),
    mtu: GUEST_MTU,
    timeNs: BigInt(Date.now()) * 1_000_000n + BigInt(Math.trunc((performance.now() % 1) * 1e6)),
    entropy: randomBytes(ENTROPY_BYTES),
  };
}
