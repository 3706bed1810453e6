// Names and addresses that follow from (clusterid, vmid); manual section 7: host number vmid+1 in the cluster's network.

import { SnowflockError } from './errors.ts';

/** Every cluster's private network: isolated from each other, so all may use the same. */
export const CLUSTER_NETWORK = { base: '10.0.0.0', prefix: 16 } as const;
/** Leaves room for the VXLAN header in a 1500-byte underlay. */
export const GUEST_MTU = 1450;
const VMID_MAX = 0xfffd;

function checkVmid(vmid: number): void {
  if (!Number.isInteger(vmid) || vmid < 0 || vmid > VMID_MAX)
    throw new SnowflockError('bad-request', `vmid ${vmid} is out of range 0..${VMID_MAX}`);
}

/** 10.0.0.1 for vmid 0, 10.0.1.1 for vmid 256. */
export function guestIp(vmid: number): string {
  checkVmid(vmid);
  const host = vmid + 1;
  return `10.0.${host >> 8}.${host & 0xff}`;
}

/** Locally administered, unique in its cluster and over clusters. */
export function guestMac({ clusterid, vmid }: { clusterid: number; vmid: number }): string {
  checkVmid(vmid);
  const bytes = [
    0x52,
    (clusterid >> 16) & 0xff,
    (clusterid >> 8) & 0xff,
    clusterid & 0xff,
    vmid >> 8,
    vmid & 0xff,
  ];
  return bytes.map((b) => b.toString(16).padStart(2, '0')).join(':');
}

export function guestHostname({ clusterid, vmid }: { clusterid: number; vmid: number }): string {
  return `sf-${clusterid}-${vmid}`;
}

export interface VmRef {
  readonly clusterid: number;
  readonly vmid: number;
}

/** Parses `clusterid:vmid`. */
export function parseVmRef(text: string): VmRef {
  const match = /^(\d{1,8}):(\d{1,5})$/.exec(text);
  if (!match)
    throw new SnowflockError(
      'bad-request',
      `'${text}' does not name a VM; write CLUSTERID:VMID, for example 0:1`,
    );
  const ref = { clusterid: Number(match[1]), vmid: Number(match[2]) };
  checkVmid(ref.vmid);
  return ref;
}

export function formatVmRef(ref: VmRef): string {
  return `${ref.clusterid}:${ref.vmid}`;
}
