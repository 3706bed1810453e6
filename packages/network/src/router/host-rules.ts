// What a host's own tables have to do for the routers on it, as data.
//
//   router ─ sfu<C> ─▶ forward ─▶ outside             never: the host itself, another host, another router
//   outside ─▶ port of the host ─▶ sfu<C> ─▶ router    exposed ports only
//
// A host that did not forward packets before does it for routers only, and not at all when the last of them is gone: what the last
// rule says is kept in the table, so that it is known whatever became of the sfld that made it.

import { readFile, writeFile } from 'node:fs/promises';
import { checkAddress } from '../commands.ts';
import { runCommand } from '../run-command.ts';
import { NETWORK_TOOL_TIMEOUT_MS, runTool } from '../run.ts';
import { UPLINK_NETWORK, uplinkAddresses } from './rules.ts';

const TABLE = 'ip snowflock_routers';
/** There when the host did not forward before. */
const MARK = 'forwards_for_routers_only';
const FORWARDING = '/proc/sys/net/ipv4/ip_forward';
const [UPLINKS, BRIDGES] = ['"sfu*"', '"sfb*"'];

export interface HostRouting {
  /** Of the system: not reached, whatever the whitelist says. */
  readonly hosts: readonly string[];
  readonly exposed: readonly { readonly clusterid: number; readonly hostPort: number }[];
}

/** Input of `nft -f -` that replaces all of it at once. */
export function hostRoutingRules(
  { hosts, exposed }: HostRouting,
  options: { onlyForRouters: boolean },
): string {
  const list = [...new Set(hosts.map((host) => checkAddress('host', host)))].sort();
  const to = exposed.map(
    ({ clusterid, hostPort }) =>
      `    fib daddr type local tcp dport ${hostPort} dnat to ${uplinkAddresses(clusterid).router}:${hostPort}`,
  );
  return [
    `add table ${TABLE}`,
    `delete table ${TABLE}`,
    `table ${TABLE} {`,
    `  set hosts { type ipv4_addr;${list.length > 0 ? ` elements = { ${list.join(', ')} };` : ''} }`,
    '  chain raw {',
    '    type filter hook prerouting priority raw; policy accept;',
    // where bridged packets come by here (br_netfilter): clusters have the same addresses
    `    iifname ${BRIDGES} notrack`,
    '  }',
    '  chain input {',
    '    type filter hook input priority filter - 10; policy accept;',
    `    iifname ${UPLINKS} ct state established,related accept`,
    `    iifname ${UPLINKS} drop`,
    '  }',
    ...(options.onlyForRouters ? [`  chain ${MARK} {`, '    drop', '  }'] : []),
    '  chain forward {',
    '    type filter hook forward priority filter - 10; policy accept;',
    `    iifname ${UPLINKS} oifname ${UPLINKS} drop`,
    // answers to whoever came by an exposed port, be it a host
    `    iifname ${UPLINKS} ct state established,related accept`,
    `    iifname ${UPLINKS} ip daddr @hosts reject with icmp type admin-prohibited`,
    `    iifname ${UPLINKS} accept`,
    `    oifname ${UPLINKS} ct status dnat accept`,
    `    oifname ${UPLINKS} ct state established,related accept`,
    `    oifname ${UPLINKS} drop`,
    `    ip saddr ${UPLINK_NETWORK} drop`,
    `    ip daddr ${UPLINK_NETWORK} drop`,
    '    meta iifkind "bridge" meta oifkind "bridge" accept',
    ...(options.onlyForRouters ? [`    jump ${MARK}`] : []),
    '  }',
    '  chain prerouting {',
    '    type nat hook prerouting priority dstnat; policy accept;',
    ...to,
    '  }',
    '  chain output {',
    '    type nat hook output priority -100; policy accept;',
    ...to,
    '  }',
    '  chain postrouting {',
    '    type nat hook postrouting priority srcnat; policy accept;',
    `    ip saddr ${UPLINK_NETWORK} oifname != ${UPLINKS} masquerade`,
    '  }',
    '}',
    '',
  ].join('\n');
}

async function isMarked(): Promise<boolean> {
  const argv = ['nft', 'list', 'chain', ...TABLE.split(' '), MARK];
  return (await runCommand(argv, { timeoutMs: NETWORK_TOOL_TIMEOUT_MS })).status === 0;
}

/** The rules first: the host forwards nothing that they have not seen. */
export async function applyHostRouting(routing: HostRouting): Promise<void> {
  const forwards = (await readFile(FORWARDING, 'utf8')).trim() === '1';
  const onlyForRouters = !forwards || (await isMarked());
  const input = hostRoutingRules(routing, { onlyForRouters });
  await runTool('nft', ['-f', '-'], { input });
  if (!forwards) await writeFile(FORWARDING, '1');
}

/** When there is no router on this host. Idempotent. */
export async function removeHostRouting(): Promise<void> {
  if (await isMarked()) await writeFile(FORWARDING, '0');
  await runTool('nft', ['-f', '-'], { input: `add table ${TABLE}\ndelete table ${TABLE}\n` });
}
