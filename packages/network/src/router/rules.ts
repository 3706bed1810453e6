// The router of a cluster, as data: commands for `ip -batch -` and `tc -batch -`, input for `nft -f -`.
//
//   VMs ─ bridge sfb<C> ─ sfr<C>══cluster [namespace: routes, filters, translates, caps] up══sfu<C> ─ host: translates ─ the world
//
// The link to the host has addresses of class E, two for each clusterid: nobody else uses them, and none leaves the host.

import { isIPv4 } from 'node:net';
import { CLUSTER_NETWORK, GUEST_MTU, ROUTER_IP, routerMac } from '@snowflock/protocol';
import { bridgeName, routerLinkName, uplinkName } from '../names.ts';

/** All links between hosts and routers. */
export const UPLINK_NETWORK = '240.0.0.0/7';
const UPLINK_BASE = 240 * 2 ** 24;
const [CLUSTER, UP] = ['cluster', 'up'];
const TABLE = 'ip snowflock_router';

/** The host's and the router's address of a cluster's uplink. */
export function uplinkAddresses(clusterid: number): { readonly host: string; readonly router: string } {
  const text = (address: number): string =>
    [24, 16, 8, 0].map((shift) => Math.floor(address / 2 ** shift) % 256).join('.');
  const host = UPLINK_BASE + 2 * clusterid;
  return { host: text(host), router: text(host + 1) };
}

/** In the host's namespace; `netns` is where the router's ends go. */
export function routerLinkCommands(clusterid: number, netns: string): string[] {
  const [link, uplink] = [routerLinkName(clusterid), uplinkName(clusterid)];
  return [
    `link add name ${link} mtu ${GUEST_MTU} type veth peer name ${CLUSTER} mtu ${GUEST_MTU} address ${routerMac(clusterid)} netns ${netns}`,
    `link add name ${uplink} type veth peer name ${UP} netns ${netns}`,
    `link set dev ${link} addrgenmode none master ${bridgeName(clusterid)} up`,
    `link set dev ${uplink} addrgenmode none up`,
    `addr add ${uplinkAddresses(clusterid).host}/31 dev ${uplink}`,
  ];
}

/** In the router's namespace. */
export function routerInsideCommands(clusterid: number): string[] {
  const { host, router } = uplinkAddresses(clusterid);
  return [
    'link set dev lo up',
    `link set dev ${CLUSTER} addrgenmode none up`,
    `link set dev ${UP} addrgenmode none up`,
    `addr add ${ROUTER_IP}/${CLUSTER_NETWORK.prefix} dev ${CLUSTER}`,
    `addr add ${router}/31 dev ${UP}`,
    `route add default via ${host}`,
  ];
}

/** One large packet must fit, or tbf drops it. */
const BURST_BYTES = 128 * 1024;
const QUEUE_MS = 100;

/** For `tc -batch -`: what leaves for the cluster and for outside, each. */
export function capCommands(capMbit: number | null): string[] {
  return [CLUSTER, UP].map((device) =>
    capMbit === null
      ? `qdisc replace dev ${device} root noqueue`
      : `qdisc replace dev ${device} root tbf rate ${capMbit}mbit burst ${BURST_BYTES} latency ${QUEUE_MS}ms`,
  );
}

export interface Exposed {
  readonly vmid: number;
  readonly port: number;
  /** Of the host. */
  readonly hostPort: number;
}

export interface RouterRules {
  /** IPv4 addresses and subnets of the whitelist. */
  readonly addresses: readonly string[];
  /** Addresses of its names, each for so long. */
  readonly named: readonly { readonly ip: string; readonly seconds: number }[];
  readonly exposed: readonly (Omit<Exposed, 'vmid'> & { readonly ip: string })[];
}

function elements(list: readonly string[]): string {
  return list.length > 0 ? ` elements = { ${list.join(', ')} };` : '';
}

/** Input of `nft -f -` that replaces all rules of the router at once. */
export function routerRules({ addresses, named, exposed }: RouterRules): string {
  const timed = named.map(({ ip, seconds }) => `${ip} timeout ${seconds}s`);
  return [
    `add table ${TABLE}`,
    `delete table ${TABLE}`,
    `table ${TABLE} {`,
    `  set addresses { type ipv4_addr; flags interval; auto-merge;${elements(addresses)} }`,
    `  set named { type ipv4_addr; flags timeout;${elements(timed)} }`,
    '  chain input {',
    '    type filter hook input priority filter; policy drop;',
    `    iifname "${CLUSTER}" ip daddr ${ROUTER_IP} icmp type echo-request accept`,
    `    iifname "${CLUSTER}" ip daddr ${ROUTER_IP} udp dport 53 accept`,
    '  }',
    '  chain forward {',
    '    type filter hook forward priority filter; policy drop;',
    '    ct state established,related accept',
    `    iifname "${UP}" oifname "${CLUSTER}" ct status dnat accept`,
    `    iifname "${CLUSTER}" oifname "${UP}" ip daddr @addresses accept`,
    `    iifname "${CLUSTER}" oifname "${UP}" ip daddr @named accept`,
    `    iifname "${CLUSTER}" oifname "${UP}" limit rate 1000/second reject with icmp type admin-prohibited`,
    '  }',
    '  chain prerouting {',
    '    type nat hook prerouting priority dstnat; policy accept;',
    ...exposed.map(
      ({ hostPort, ip, port }) => `    iifname "${UP}" tcp dport ${hostPort} dnat to ${ip}:${port}`,
    ),
    '  }',
    '  chain postrouting {',
    '    type nat hook postrouting priority srcnat; policy accept;',
    `    oifname "${UP}" masquerade`,
    '  }',
    '}',
    '',
  ].join('\n');
}

/** Input of `nft -f -`: these addresses of names from now for so long, known ones anew. */
export function namedRules(named: RouterRules['named']): string {
  const lines = named.flatMap(({ ip, seconds }) => [
    `add element ${TABLE} named { ${ip} }`,
    `delete element ${TABLE} named { ${ip} }`,
    `add element ${TABLE} named { ${ip} timeout ${seconds}s }`,
  ]);
  return [...lines, ''].join('\n');
}

export interface WhitelistParts {
  /** IPv4 addresses and subnets. */
  readonly addresses: readonly string[];
  /** Lower case, without the last dot. */
  readonly names: readonly string[];
}

/** IPv6 entries are left out: nothing outside is reached by IPv6. */
export function whitelistParts(whitelist: readonly string[]): WhitelistParts {
  const isAddress = (entry: string): boolean => isIPv4(entry.split('/')[0] ?? '');
  const isName = (entry: string): boolean => !isAddress(entry) && !entry.includes(':');
  return {
    addresses: [...new Set(whitelist.filter(isAddress))],
    names: [...new Set(whitelist.filter(isName).map((name) => name.toLowerCase().replace(/\.$/, '')))],
  };
}
