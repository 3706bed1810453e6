// The lab's network as data: one namespace with a bridge is the switch, one per host with a cable (veth) to it.
// Nothing of it is in the machine's own namespace.

import { hostAddress, hostNetns, LAB_PREFIX, SWITCH_BRIDGE, switchNetns, switchPort } from './names.ts';

export interface NetnsBatch {
  /** Namespace to run `ip -batch` in; undefined for commands that name their namespaces. */
  readonly netns?: string;
  readonly commands: readonly string[];
}

export function topologyCommands({ name, hosts }: { name: string; hosts: number }): NetnsBatch[] {
  const sw = switchNetns(name);
  const numbers = Array.from({ length: hosts }, (_, index) => index + 1);
  const cable = (k: number): string =>
    `link add name ${switchPort(k)} netns ${sw} type veth peer name eth0 netns ${hostNetns(name, k)}`;
  return [
    { commands: [`netns add ${sw}`, ...numbers.map((k) => `netns add ${hostNetns(name, k)}`)] },
    { commands: numbers.map(cable) },
    {
      netns: sw,
      commands: [
        'link set dev lo up',
        `link add name ${SWITCH_BRIDGE} type bridge stp_state 0 forward_delay 0 mcast_snooping 0`,
        `link set dev ${SWITCH_BRIDGE} addrgenmode none up`,
        ...numbers.map((k) => `link set dev ${switchPort(k)} addrgenmode none master ${SWITCH_BRIDGE} up`),
      ],
    },
    ...numbers.map((k) => ({
      netns: hostNetns(name, k),
      commands: [
        'link set dev lo up',
        'link set dev eth0 addrgenmode none up',
        `addr add ${hostAddress(k)}/${LAB_PREFIX} dev eth0`,
      ],
    })),
  ];
}

export interface LinkShape {
  /** Both directions; absent: as fast as it goes. */
  readonly rateMbit?: number;
  /** Share of packets lost in each direction, 0 to 100; absent: none. */
  readonly dropPercent?: number;
}

/** Ends of a host's cable: where to shape, and which device. */
export function cableEnds(name: string, k: number): { netns: string; device: string }[] {
  return [
    { netns: switchNetns(name), device: switchPort(k) },
    { netns: hostNetns(name, k), device: 'eth0' },
  ];
}

/** One large GSO packet must fit into the bucket, or tbf drops it. */
const BURST_BYTES = 128 * 1024;
/** What may queue before tail drop. */
const QUEUE_LATENCY_MS = 50;

/** Arguments of `tc` that make this end send at most so fast; undefined: remove the limit. */
export function rateArgs(device: string, rateMbit: number | undefined): string[] {
  return rateMbit === undefined
    ? ['qdisc', 'del', 'dev', device, 'root']
    : // prettier-ignore
      ['qdisc', 'replace', 'dev', device, 'root', 'tbf', 'rate', `${Math.round(rateMbit * 1000)}kbit`,
       'burst', String(BURST_BYTES), 'latency', `${QUEUE_LATENCY_MS}ms`];
}

const DROP_SCALE = 10_000;

/** Input of `nft -f -` that makes this end lose so many of the packets that it receives; 0: none. */
export function dropRules(device: string, dropPercent: number): string {
  const table = `sflab-${device}`;
  const clean = `table netdev ${table}\ndelete table netdev ${table}\n`;
  if (dropPercent === 0) return clean;
  const share = Math.round((dropPercent / 100) * DROP_SCALE);
  return `${clean}table netdev ${table} {
  chain in {
    type filter hook ingress device "${device}" priority 0; policy accept;
    ${share >= DROP_SCALE ? 'drop' : `numgen random mod ${DROP_SCALE} < ${share} drop`}
  }
}
`;
}
