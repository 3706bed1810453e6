// Who a VM may say that it is. Each tap has a chain of its own that lets frames pass which carry the VM's own MAC, IPv4 and IPv6
// address and no other; a tap without one lets nothing pass. So no VM takes the address of another, of the router, or of nobody.
//
//   table bridge snowflock_taps     prerouting ─▶ map taps {tap: jump CHAIN} ─▶ CHAIN: accept, or drop
//                                   input ─▶ drop
//
// Nor is the host itself on these bridges: without addresses of its own there it would still take what is sent to a MAC address of the
// bridge or of a tap, which guests can know, for whichever of its IP addresses, or forward it.
//
// Frames from other hosts have been through this there. Rules are data; each change is one batch that the kernel takes whole.

import {
  CLUSTER_NETWORK_6,
  guestIp,
  guestIp6,
  guestMac,
  SnowflockError,
  type VmRef,
} from '@snowflock/protocol';
import { tapName } from './names.ts';
import { NETWORK_TOOL_TIMEOUT_MS, toolArgv, type RunOptions } from './run.ts';
import { runCommand } from './run-command.ts';

export const TAP_TABLE = 'bridge snowflock_taps';
const TAPS = '"sft*"';
/** All ports of our bridges: of VMs, to other hosts, to the router. */
const PORTS = [TAPS, '"sfv*"', '"sfr*"'];

/** As nftables compares it with the target of a neighbour advertisement, for which this version has no name. */
function hexOf(vmid: number): string {
  const groups = CLUSTER_NETWORK_6.base.replace('::', '').split(':');
  const prefix = groups.map((group) => group.padStart(4, '0')).join('');
  return `0x${prefix}${(vmid + 1).toString(16).padStart(32 - prefix.length, '0')}`;
}

function chainOf(ref: VmRef): string[] {
  const [mac, ip, ip6] = [guestMac(ref), guestIp(ref.vmid), guestIp6(ref.vmid)];
  return [
    `ether saddr != ${mac} drop`,
    `ip saddr ${ip} accept`,
    `ether type arp arp saddr ether ${mac} arp saddr ip ${ip} accept`,
    // before the address: these would change what others think of addresses and routes
    'icmpv6 type { nd-router-advert, nd-redirect } drop',
    `icmpv6 type nd-neighbor-advert @th,64,128 != ${hexOf(ref.vmid)} drop`,
    `ip6 saddr ${ip6} accept`,
    // joining the group of its own address, before it has it
    'ip6 saddr :: icmpv6 type mld2-listener-report accept',
    // where it now is, as its QEMU announces it when it has been migrated; nobody answers these
    'ether type 0x8035 accept',
    'drop',
  ];
}

/** The table and its hook, whether they are there already or not; taps that it knows stay known. */
function tableRules(): string[] {
  return [
    `add table ${TAP_TABLE}`,
    `add map ${TAP_TABLE} taps { type ifname : verdict; }`,
    `add chain ${TAP_TABLE} prerouting { type filter hook prerouting priority -300; policy accept; }`,
    `flush chain ${TAP_TABLE} prerouting`,
    `add rule ${TAP_TABLE} prerouting iifname vmap @taps`,
    `add rule ${TAP_TABLE} prerouting iifname ${TAPS} counter drop`,
    `add chain ${TAP_TABLE} input { type filter hook input priority -300; policy accept; }`,
    `flush chain ${TAP_TABLE} input`,
    ...PORTS.map((ports) => `add rule ${TAP_TABLE} input iifname ${ports} drop`),
  ];
}

/** Input of `nft -f -`: from now on these VMs may send, as themselves. */
export function guardTapRules(refs: readonly VmRef[]): string {
  const commands = refs.flatMap((ref) => {
    const tap = tapName(ref);
    return [
      `add chain ${TAP_TABLE} ${tap}`,
      `flush chain ${TAP_TABLE} ${tap}`,
      ...chainOf(ref).map((rule) => `add rule ${TAP_TABLE} ${tap} ${rule}`),
      `add element ${TAP_TABLE} taps { "${tap}" : jump ${tap} }`,
    ];
  });
  return [...tableRules(), ...commands, ''].join('\n');
}

/** Input of `nft -f -`: nothing is known of these taps, whether it was or not. Fails, and changes nothing, where there is no table. */
export function unguardTapRules(taps: readonly string[]): string {
  const commands = taps.flatMap((tap) => [
    `add chain ${TAP_TABLE} ${tap}`,
    `add element ${TAP_TABLE} taps { "${tap}" : jump ${tap} }`,
    `delete element ${TAP_TABLE} taps { "${tap}" }`,
    `flush chain ${TAP_TABLE} ${tap}`,
    `delete chain ${TAP_TABLE} ${tap}`,
  ]);
  return [...commands, ''].join('\n');
}

/** Where there is no table there is nothing to do, and none is made. */
export async function unguardTaps(taps: readonly string[], { netns, signal }: RunOptions): Promise<void> {
  const argv = toolArgv('nft', ['-f', '-'], netns);
  const input = unguardTapRules(taps);
  const { status, stderr } = await runCommand(argv, { input, timeoutMs: NETWORK_TOOL_TIMEOUT_MS, signal });
  if (status === 0 || stderr.includes('No such file or directory')) return;
  throw new SnowflockError(
    'internal',
    `the guards of ${taps.join(', ')} stay: ${stderr.trim().slice(0, 500)}`,
  );
}

/** Input of `nft -f -`: no table, whether there was one or not. */
export function noTapGuardRules(): string {
  return `add table ${TAP_TABLE}\ndelete table ${TAP_TABLE}\n`;
}
