// Who may send VXLAN to this host: the system's hosts, nobody else. VXLAN asks for nothing, so that anybody who reaches the
// port could put frames into the network of a cluster.
//
//   table ip snowflock_vxlan     there while a cluster has a network on this host, whatever becomes of sfld meanwhile
//
// One `nft -f -` replaces the table: the kernel takes all of it or nothing, and no packet meets half of it.

import { checkAddress, VXLAN_PORT } from './commands.ts';
import { runTool, toolArgv, type RunOptions, NETWORK_TOOL_TIMEOUT_MS } from './run.ts';
import { runCommand } from './run-command.ts';
import { noTapGuardRules } from './tap-guard.ts';

export const VXLAN_TABLE = 'ip snowflock_vxlan';

/** Input of `nft -f -`: from now on only these addresses; this host sends none to itself, nor do its users. */
export function vxlanFilterRules(options: {
  readonly hosts: readonly string[];
  readonly localAddress: string;
}): string {
  const hosts = [...new Set(options.hosts.map((host) => checkAddress('host', host)))]
    .filter((host) => host !== options.localAddress)
    .sort();
  const elements = hosts.length > 0 ? ` elements = { ${hosts.join(', ')} };` : '';
  return [
    `add table ${VXLAN_TABLE}`,
    `delete table ${VXLAN_TABLE}`,
    `table ${VXLAN_TABLE} {`,
    `  set hosts { type ipv4_addr;${elements} }`,
    '  chain input {',
    '    type filter hook input priority filter - 10; policy accept;',
    `    udp dport ${VXLAN_PORT} ip saddr != @hosts counter drop`,
    '  }',
    '}',
    '',
  ].join('\n');
}

/** Input of `nft -f -`: no table of ours, whether there was one or not. */
export function noFilterRules(): string {
  return `add table ${VXLAN_TABLE}\ndelete table ${VXLAN_TABLE}\n${noTapGuardRules()}`;
}

export async function applyVxlanFilter(
  rules: Parameters<typeof vxlanFilterRules>[0],
  options: RunOptions = {},
): Promise<void> {
  await runTool('nft', ['-f', '-'], { ...options, input: vxlanFilterRules(rules) });
}

/** When no cluster has a network on this host; that of the taps too. Idempotent. */
export async function removeFilters(options: RunOptions = {}): Promise<void> {
  await runTool('nft', ['-f', '-'], { ...options, input: noFilterRules() });
}

export async function hasVxlanFilter({ netns, signal }: RunOptions = {}): Promise<boolean> {
  const argv = toolArgv('nft', ['list', 'table', ...VXLAN_TABLE.split(' ')], netns);
  return (await runCommand(argv, { timeoutMs: NETWORK_TOOL_TIMEOUT_MS, signal })).status === 0;
}
