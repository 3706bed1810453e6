// sfstate (manual section 4): all hosts, clusters, VMs and tickets.

import { Command } from 'commander';
import { SystemState } from '@snowflock/protocol';
import { openClient, SOCKET_OPTION } from './sfld-socket.ts';
import { formatBytes, formatTable, type Column } from './table.ts';

const STATE_TIMEOUT_MS = 10_000;

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
const TICKET_COLUMNS: readonly Column[] = [
  { title: 'TICKET' },
  { title: 'STATE' },
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
    if (tickets.length === 0) continue;
    const list = tickets.map(({ ticket, status, clones }) => [
      ticket,
      status,
      clones.map(({ vmid, host }) => `${vmid}@${host}`).join(' '),
    ]);
    lines.push('', ...indent(formatTable(TICKET_COLUMNS, list, narrower(options))));
  }
  if (state.clusters.length === 0) lines.push('', 'no clusters; sfseed CFGFILE starts one');
  return lines.join('\n') + '\n';
}

function indent(lines: readonly string[]): string[] {
  return lines.map((line) => `  ${line}`);
}

function narrower({ width }: { readonly width?: number | undefined }): { width?: number } {
  return width === undefined ? {} : { width: width - 2 };
}

export function sfstateProgram(): Command {
  return new Command('sfstate')
    .summary('show hosts, clusters, VMs and tickets')
    .description(
      'Prints all hosts of the system with what is free on them, and every cluster with its VMs and tickets.',
    )
    .option('--json', 'print everything as one JSON object')
    .option(...SOCKET_OPTION)
    .action(async (options: { json?: boolean; socket?: string }) => {
      using client = openClient(options);
      const path = '/v1/master/state';
      const state = await client.request({
        method: 'GET',
        path,
        reply: SystemState,
        timeoutMs: STATE_TIMEOUT_MS,
      });
      const width = process.stdout.isTTY ? process.stdout.columns : undefined;
      process.stdout.write(options.json ? `${JSON.stringify(state)}\n` : formatState(state, { width }));
    });
}
