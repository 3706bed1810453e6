// Names and addresses that follow from (clusterid, vmid); manual section 7: host number vmid+1 in the cluster's network.

import { SnowflockError } from './errors.ts';

/** Every cluster's private network: isolated from each other, so all may use the same. */
export const CLUSTER_NETWORK = { base: '10.0.0.0', prefix: 16 } as const;
/** The same for IPv6: a unique local prefix of SnowFlock's own (RFC 4193). */
export const CLUSTER_NETWORK_6 = { base: 'fd53:6e6f:7766::', prefix: 64 } as const;
/** The cluster's router: its gateway and name server. The last host number, which no VM has. */
const ROUTER_HOST = 0xfffe;
export const ROUTER_IP = '10.0.255.254';
/** Leaves room for the VXLAN header in a 1500-byte underlay. */
export const GUEST_MTU = 1450;
export const CLUSTERID_MAX = 0xfffffe;
/** Host number vmid + 1 comes before the router's. */
export const VMID_MAX = ROUTER_HOST - 2;

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

/** fd53:6e6f:7766::1 for vmid 0. */
export function guestIp6(vmid: number): string {
  checkVmid(vmid);
  return `${CLUSTER_NETWORK_6.base}${(vmid + 1).toString(16)}`;
}

/** Locally administered, unique in its cluster and over clusters. */
export function guestMac({ clusterid, vmid }: { clusterid: number; vmid: number }): string {
  checkVmid(vmid);
  return clusterMac(clusterid, vmid);
}

/** The router's, in the cluster: always the same, so that guests find it again when it was started anew. */
export function routerMac(clusterid: number): string {
  return clusterMac(clusterid, ROUTER_HOST);
}

function clusterMac(clusterid: number, number: number): string {
  const bytes = [
    0x52,
    (clusterid >> 16) & 0xff,
    (clusterid >> 8) & 0xff,
    clusterid & 0xff,
    number >> 8,
    number & 0xff,
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
