// The state of a system as tables for people: hosts with what is free on them, then each cluster with its VMs and tickets.

import type { SystemState, VmState } from '@snowflock/protocol';
import { formatBytes, formatTable, type Column } from './table.ts';

const HOST_COLUMNS: readonly Column[] = [
  { title: 'HOST' },
  { title: 'ADDRESS' },
  { title: 'STATE' },
  { title: 'ACCEL' },
  { title: 'CPUS FREE', align: 'right' },
  { title: 'RAM FREE', align: 'right' },
  { title: 'VMS', align: 'right' },
];
const VM_COLUMNS: readonly Column[] = [
  { title: 'VM' },
  { title: 'STATE' },
  { title: 'HOST' },
  { title: 'VCPUS', align: 'right' },
  { title: 'MEMORY', align: 'right' },
  { title: 'IP' },
  { title: 'TICKET' },
  { title: 'REASON' },
];
const FETCHED_COLUMNS: readonly Column[] = [
  { title: 'CLONE' },
  { title: 'FETCHED', align: 'right' },
  { title: 'WAITS', align: 'right' },
  { title: 'WAITED', align: 'right' },
  { title: 'MEDIAN', align: 'right' },
  { title: '99 %', align: 'right' },
];
const TICKET_COLUMNS: readonly Column[] = [
  { title: 'TICKET' },
  { title: 'STATE' },
  { title: 'OWNER' },
  { title: 'CLONES (VMID@HOST)' },
];
const MIB = 1 << 20;

/** Widths adapt to what there is; with `width` no line is longer than the terminal. */
export function formatState(
  state: SystemState,
  options: { readonly width?: number | undefined } = {},
): string {
  const hosts = state.hosts.map((host) => [
    host.host,
    host.address ?? '-',
    host.up ? 'up' : 'down',
    host.accel ?? '-',
    `${host.cpusFree}/${host.cpus}`,
    `${formatBytes(host.ramFreeBytes)}/${formatBytes(host.ramBytes)}`,
    String(host.vms),
  ]);
  const lines = formatTable(HOST_COLUMNS, hosts, options);
  for (const { clusterid, shape, vms, tickets } of state.clusters) {
    const size = `${shape.vcpus} VCPU${shape.vcpus === 1 ? '' : 's'}, ${formatBytes(shape.memoryMib * MIB)} each`;
    lines.push('', `cluster ${clusterid}: ${shape.diskImage}, ${size}`);
    const rows = vms.map((vm) => [
      `${clusterid}:${vm.vmid}`,
      vm.status,
      vm.host,
      String(vm.vcpus),
      formatBytes(vm.memoryMib * MIB),
      vm.ip,
      vm.ticket ?? '-',
      vm.reason ?? '',
    ]);
    lines.push(...indent(formatTable(VM_COLUMNS, rows, narrower(options))));
    const fetched = vms.flatMap((vm) =>
      vm.fetched ? [fetchedRow(`${clusterid}:${vm.vmid}`, vm.fetched)] : [],
    );
    if (fetched.length > 0)
      lines.push('', ...indent(formatTable(FETCHED_COLUMNS, fetched, narrower(options))));
    if (tickets.length === 0) continue;
    const list = tickets.map(({ ticket, status, owner, clones }) => [
      ticket,
      status,
      `${clusterid}:${owner}`,
      clones.map(({ vmid, host }) => `${vmid}@${host}`).join(' '),
    ]);
    lines.push('', ...indent(formatTable(TICKET_COLUMNS, list, narrower(options))));
  }
  if (state.clusters.length === 0) lines.push('', 'no clusters; sfseed CFGFILE starts one');
  return lines.join('\n') + '\n';
}

function fetchedRow(name: string, { bytes, waits }: NonNullable<VmState['fetched']>): string[] {
  const ms = (us: number | undefined): string => (us === undefined ? '-' : `${(us / 1000).toFixed(1)} ms`);
  return [
    name,
    formatBytes(bytes),
    String(waits?.count ?? 0),
    ms(waits?.sumUs),
    ms(waits?.medianUs),
    ms(waits?.p99Us),
  ];
}

function indent(lines: readonly string[]): string[] {
  return lines.map((line) => `  ${line}`);
}

function narrower({ width }: { readonly width?: number | undefined }): { width?: number } {
  return width === undefined ? {} : { width: width - 2 };
}
