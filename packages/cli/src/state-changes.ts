// What has changed between two looks at a system, one line for each thing: for `sfstate --watch` into a pipe.

import type { SystemState } from '@snowflock/protocol';
import { formatBytes } from './table.ts';

/** Every host, cluster, VM and ticket as a line of its own; equal lines are unchanged things. */
function things(state: SystemState): Map<string, string> {
  const lines = new Map<string, string>();
  for (const { host, up, cpus, cpusFree, ramBytes, ramFreeBytes, vms } of state.hosts)
    lines.set(
      `host ${host}`,
      `${up ? 'up' : 'down'}, ${cpusFree}/${cpus} CPUs and ${formatBytes(ramFreeBytes)}/${formatBytes(ramBytes)} free, ` +
        `${vms} VM${vms === 1 ? '' : 's'}`,
    );
  for (const { clusterid, shape, vms, tickets } of state.clusters) {
    lines.set(`cluster ${clusterid}`, shape.diskImage);
    for (const { vmid, status, host, ip, reason } of vms)
      lines.set(`vm ${clusterid}:${vmid}`, `${status} on ${host}, ${ip}${reason ? `: ${reason}` : ''}`);
    for (const { ticket, status, clones } of tickets) {
      const names = clones.map(({ vmid }) => `${clusterid}:${vmid}`).join(' ');
      lines.set(`ticket ${ticket}`, `${status}, cluster ${clusterid}: ${names}`);
    }
  }
  return lines;
}

/** Lines without a time; from nothing (null), everything there is. */
export function stateChanges(before: SystemState | null, after: SystemState): string[] {
  const old = before === null ? new Map<string, string>() : things(before);
  const now = things(after);
  const changed = [...now].filter(([name, text]) => old.get(name) !== text);
  const gone = [...old.keys()].filter((name) => !now.has(name));
  return [...changed.map(([name, text]) => `${name}: ${text}`), ...gone.map((name) => `${name}: gone`)];
}
