// The interface that multicast goes out of and comes in at, by its address.

import { readFileSync } from 'node:fs';
import { networkInterfaces } from 'node:os';
import { MCDIST_MTU_MIN } from '@snowflock/protocol/pages';

/** Ethernet's. */
const DEFAULT_MTU = 1500;

/** MTU of the interface that has `address`; Ethernet's when the kernel does not say. */
export function mtuOf(address: string): number {
  for (const [name, addresses] of Object.entries(networkInterfaces())) {
    if (addresses?.some((each) => each.address === address) !== true) continue;
    try {
      const mtu = Number(readFileSync(`/sys/class/net/${name}/mtu`, 'latin1'));
      if (mtu >= MCDIST_MTU_MIN) return mtu;
    } catch {
      return DEFAULT_MTU; // /sys of another network namespace, or none
    }
  }
  return DEFAULT_MTU;
}
