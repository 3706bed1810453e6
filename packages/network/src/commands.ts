// The private network of a cluster on one host, as data: lists of `ip` and `bridge` commands, one string each, ready
// for `ip -batch -` and `bridge -batch -`. Pure; network.ts applies them.
//
//   tap(s) of the VMs ── bridge sfb<clusterid> ── VXLAN sfv<clusterid> ── UDP 4789 to every other host
//
// The host has no address on the bridge and no IPv6 there, and the guard of the taps hands it none of the bridge's frames: no
// guest can reach a host through it. Frames for unknown and broadcast addresses are flooded to a list of unicast peers; the underlay needs no multicast.

import { isIPv4 } from 'node:net';
import { GUEST_MTU, SnowflockError } from '@snowflock/protocol';
import { bridgeName, tapMac, tapName, vni, vxlanName } from './names.ts';

/** IANA's port for VXLAN. */
export const VXLAN_PORT = 4789;
/** Destination of an entry of the flood list. */
const FLOOD_MAC = '00:00:00:00:00:00';
const MAC = /^[0-9a-f]{2}(:[0-9a-f]{2}){5}$/i;

export function checkAddress(what: string, address: string): string {
  if (!isIPv4(address))
    throw new SnowflockError('bad-request', `${what} '${address}' is not an IPv4 address`);
  return address;
}

/** Makes bridge and VXLAN device. `have` names what exists already and is adopted as it is. */
export function openCommands(options: {
  readonly clusterid: number;
  readonly localAddress: string;
  readonly have?: ReadonlySet<string>;
}): string[] {
  const { clusterid, have } = options;
  const bridge = bridgeName(clusterid);
  const vxlan = vxlanName(clusterid);
  const local = checkAddress('local address', options.localAddress);
  const commands: string[] = [];
  if (!have?.has(bridge))
    commands.push(`link add name ${bridge} type bridge stp_state 0 forward_delay 0 mcast_snooping 0`);
  if (!have?.has(vxlan))
    commands.push(
      `link add name ${vxlan} type vxlan id ${vni(clusterid)} local ${local} dstport ${VXLAN_PORT} learning`,
    );
  commands.push(
    `link set dev ${bridge} mtu ${GUEST_MTU} addrgenmode none`,
    `link set dev ${vxlan} mtu ${GUEST_MTU} addrgenmode none`,
    `link set dev ${vxlan} master ${bridge}`,
    `link set dev ${vxlan} up`,
    `link set dev ${bridge} up`,
  );
  return commands;
}

/** A tap as QEMU opens it (`-netdev tap,ifname=...,script=no,downscript=no`), on the bridge, and down: nothing passes. */
export function addTapCommands(options: {
  readonly clusterid: number;
  readonly vmid: number;
  /** Of the host's end; not the guest's. */
  readonly mac?: string;
}): string[] {
  const tap = tapName(options);
  const bridge = bridgeName(options.clusterid);
  const mac = options.mac ?? tapMac(options);
  if (!MAC.test(mac)) throw new SnowflockError('bad-request', `'${mac}' is not a MAC address`);
  return [
    `tuntap add dev ${tap} mode tap vnet_hdr`,
    `link set dev ${tap} mtu ${GUEST_MTU} addrgenmode none address ${mac} master ${bridge}`,
  ];
}

/** What `setLink` does, by a process; of a tap that is on no bridge, too. */
export function attachTapCommands(ids: { readonly clusterid: number; readonly vmid: number }): string[] {
  return [`link set dev ${tapName(ids)} master ${bridgeName(ids.clusterid)} up`];
}

export function lowerLinkCommand(name: string): string {
  return `link set dev ${name} down`;
}

export function removeLinkCommand(name: string): string {
  return `link del dev ${name}`;
}

export interface PeerChange {
  readonly add: readonly string[];
  readonly remove: readonly string[];
}

/** What turns the flood list `have` into `want`; the own address is never a peer. */
export function diffPeers(options: {
  readonly have: ReadonlySet<string>;
  readonly want: readonly string[];
  readonly localAddress: string;
}): PeerChange {
  const want = new Set(options.want.map((peer) => checkAddress('peer', peer)));
  want.delete(options.localAddress);
  return {
    add: [...want].filter((peer) => !options.have.has(peer)),
    remove: [...options.have].filter((peer) => !want.has(peer)),
  };
}

/** Commands for `bridge -batch -`. */
export function peerCommands(clusterid: number, change: PeerChange): string[] {
  const entry = (verb: string, peer: string): string =>
    `fdb ${verb} ${FLOOD_MAC} dev ${vxlanName(clusterid)} dst ${peer}`;
  return [
    ...change.remove.map((peer) => entry('del', peer)),
    ...change.add.map((peer) => entry('append', peer)),
  ];
}

/** Picks the flood list out of `bridge -j fdb show dev sfv...`. */
export function floodPeers(fdb: unknown): Set<string> {
  const peers = new Set<string>();
  if (!Array.isArray(fdb)) return peers;
  for (const entry of fdb as unknown[]) {
    if (typeof entry !== 'object' || entry === null) continue;
    const { mac, dst } = entry as { mac?: unknown; dst?: unknown };
    if (mac === FLOOD_MAC && typeof dst === 'string') peers.add(dst);
  }
  return peers;
}
