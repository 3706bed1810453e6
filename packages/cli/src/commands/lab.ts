// snowflock lab up|status|down: hosts on this machine.

import { Command } from 'commander';
import {
  DEFAULT_LAB_NAME,
  downLab,
  formatSize,
  Lab,
  LAB_DEFAULT_CPUS,
  LAB_DEFAULT_RAM_BYTES,
  LAB_HOSTS_MAX,
  labProgressView,
  labStatus,
  type LabStatus,
} from '@snowflock/lab';
import { ExitStatus, EXIT_FAILURE, interruptSignal } from '../failure.ts';
import { formatTable } from '../table.ts';
import { parseBytes, parseCount } from './arguments.ts';

const NAME_OPTION = ['--name <name>', 'name of the lab', DEFAULT_LAB_NAME] as const;

interface UpOptions {
  readonly hosts: number;
  readonly cpus: number;
  readonly ram: number;
  readonly name: string;
  readonly json?: boolean;
}

function upCommand(): Command {
  return new Command('up')
    .description('Starts a lab: hosts as network namespaces on a switch, sfmd on the first and sfld on each.')
    .option('--hosts <n>', `how many hosts (at most ${LAB_HOSTS_MAX})`, parseCount, 2)
    .option('--cpus <c>', 'CPUs that each host offers to VMs', parseCount, LAB_DEFAULT_CPUS)
    .option('--ram <size>', 'memory that each host offers to VMs', parseBytes, LAB_DEFAULT_RAM_BYTES)
    .option(...NAME_OPTION)
    .option('--json', 'print a JSON object when it is up')
    .action(async ({ hosts, cpus, ram, name, json }: UpOptions) => {
      const view = labProgressView();
      try {
        const signal = interruptSignal();
        await Lab.up({ name, hosts, cpus, ramBytes: ram, signal, onProgress: view.onProgress });
      } finally {
        await view.finish();
      }
      const status = await labStatus(name);
      process.stdout.write(json ? `${JSON.stringify(status)}\n` : formatLab(status));
    });
}

export function formatLab(status: LabStatus): string {
  if (status.status === 'none')
    return `there is no lab '${status.name}'; 'snowflock lab up --hosts 2' starts one\n`;
  const rows = status.hosts.map((host) => [
    host.name,
    host.address,
    host.up === null ? '?' : host.up ? 'up' : 'down',
    host.vms === null ? '?' : String(host.vms),
    [host.sfmd ? `sfmd ${host.sfmd}` : '', host.sfld ? `sfld ${host.sfld}` : 'no sfld']
      .filter(Boolean)
      .join(', '),
    host.socketPath,
  ]);
  const columns = ['HOST', 'ADDRESS', 'STATE', 'VMS', 'DAEMONS (PID)', 'SOCKET'].map((title) => ({ title }));
  const size =
    status.cpus === null || status.ramBytes === null
      ? ''
      : `, each ${status.cpus} CPU${status.cpus === 1 ? '' : 's'} and ${formatSize(status.ramBytes)}`;
  const lines = [
    `lab '${status.name}': ${status.hosts.length} host${status.hosts.length === 1 ? '' : 's'}${size}`,
  ];
  if (status.problem !== null) lines.push(`NOT WHOLE: ${status.problem}; 'snowflock lab down' removes it`);
  return [...lines, ...formatTable(columns, rows), ''].join('\n');
}

function statusCommand(): Command {
  return new Command('status')
    .description('Shows a lab. Exit status 1 when there is one that does not work.')
    .option(...NAME_OPTION)
    .option('--json', 'print a JSON object')
    .action(async ({ name, json }: { name: string; json?: boolean }) => {
      const status = await labStatus(name);
      process.stdout.write(json ? `${JSON.stringify(status)}\n` : formatLab(status));
      if (status.status === 'broken') throw new ExitStatus(EXIT_FAILURE);
    });
}

function downCommand(): Command {
  return new Command('down')
    .description('Takes a lab down with all its VMs, whatever state it is in. Nothing of it stays.')
    .option(...NAME_OPTION)
    .action(async ({ name }: { name: string }) => {
      const { existed, notes } = await downLab(name);
      for (const note of notes) process.stderr.write(`snowflock: ${note}\n`);
      process.stdout.write(
        existed ? `lab '${name}' is down\n` : `there is no lab '${name}': nothing to do\n`,
      );
    });
}

export function labCommand(): Command {
  return new Command('lab')
    .summary('hosts on this machine, to try and to test')
    .description('A lab is a SnowFlock system of several hosts on one machine, each a set of namespaces.')
    .addCommand(upCommand())
    .addCommand(statusCommand())
    .addCommand(downCommand());
}
