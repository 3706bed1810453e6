// Names of the host devices of a cluster's private network. A Linux device name has at most 15 characters, so a tap
// carries both ids in base 36: 'sft' + 5 + '-' + 4 = 13 for the largest clusterid (0xfffffe) and vmid (65532).

import { CLUSTERID_MAX, SnowflockError, VMID_MAX } from '@snowflock/protocol';

/** Every device that this package makes, and nothing else that a machine is likely to have. */
const OWN_LINK = /^(?:sf([bvru])(\d{1,8})|sft([0-9a-z]{1,5})-([0-9a-z]{1,4}))$/;

const KINDS = { b: 'bridge', v: 'vxlan', r: 'router', u: 'uplink' } as const;

function checkRange(what: string, value: number, max: number): void {
  if (!Number.isInteger(value) || value < 0 || value > max)
    throw new SnowflockError('bad-request', `${what} ${value} is out of range 0..${max}`);
}

export function bridgeName(clusterid: number): string {
  checkRange('clusterid', clusterid, CLUSTERID_MAX);
  return `sfb${clusterid}`;
}

export function vxlanName(clusterid: number): string {
  checkRange('clusterid', clusterid, CLUSTERID_MAX);
  return `sfv${clusterid}`;
}

/** The bridge's end of the link to the cluster's router. */
export function routerLinkName(clusterid: number): string {
  checkRange('clusterid', clusterid, CLUSTERID_MAX);
  return `sfr${clusterid}`;
}

/** The host's end of the link from the router to the outside. */
export function uplinkName(clusterid: number): string {
  checkRange('clusterid', clusterid, CLUSTERID_MAX);
  return `sfu${clusterid}`;
}

export function tapName({ clusterid, vmid }: { clusterid: number; vmid: number }): string {
  checkRange('clusterid', clusterid, CLUSTERID_MAX);
  checkRange('vmid', vmid, VMID_MAX);
  return `sft${clusterid.toString(36)}-${vmid.toString(36)}`;
}

/** VXLAN network identifier, 1 to 0xffffff. */
export function vni(clusterid: number): number {
  checkRange('clusterid', clusterid, CLUSTERID_MAX);
  return clusterid + 1;
}

/**
 * The host's end of a tap. Starts with fe, so that a bridge never takes it as its own address, and so that it is
 * never the guest's (52:...), which would make the bridge keep the guest's frames for itself.
 */
export function tapMac({ clusterid, vmid }: { clusterid: number; vmid: number }): string {
  checkRange('clusterid', clusterid, CLUSTERID_MAX);
  checkRange('vmid', vmid, VMID_MAX);
  const bytes = [0xfe, clusterid >> 16, (clusterid >> 8) & 0xff, clusterid & 0xff, vmid >> 8, vmid & 0xff];
  return bytes.map((byte) => byte.toString(16).padStart(2, '0')).join(':');
}

export type OwnLink =
  | { readonly kind: 'bridge' | 'vxlan' | 'router' | 'uplink'; readonly clusterid: number }
  | { readonly kind: 'tap'; readonly clusterid: number; readonly vmid: number };

/** What a device name says, or undefined when the device is not ours. */
export function parseLinkName(name: string): OwnLink | undefined {
  const match = OWN_LINK.exec(name);
  if (!match) return undefined;
  const [, letter, cluster, tapCluster, tapVm] = match;
  const link: OwnLink =
    tapCluster !== undefined && tapVm !== undefined
      ? { kind: 'tap', clusterid: parseInt(tapCluster, 36), vmid: parseInt(tapVm, 36) }
      : { kind: KINDS[letter as keyof typeof KINDS], clusterid: Number(cluster) };
  const inRange = link.clusterid <= CLUSTERID_MAX && (link.kind !== 'tap' || link.vmid <= VMID_MAX);
  return inRange ? link : undefined;
}
