// snowflock fork VM N

import { Command } from 'commander';
import type { ForkVmReply } from '@snowflock/sdk';
import { EXIT_FAILURE, ExitStatus } from '../failure.ts';
import { openSystem, SOCKET_OPTION } from '../sfld-socket.ts';
import { parseCount, parseVm } from './arguments.ts';

interface ForkOptions {
  readonly min?: number;
  readonly isolated?: boolean;
  readonly json?: boolean;
  readonly socket?: string;
}

/** As sfclone prints it, and a line for each clone. */
export function formatFork({ ticket, clones }: ForkVmReply): string {
  const running = clones.filter(({ ok }) => ok).map(({ vm, host }) => `VM ${vm} on ${host}\n`);
  return `Ticket is ${ticket}\n${running.join('')}`;
}

export function forkCommand(): Command {
  return new Command('fork')
    .summary('fork a VM from outside')
    .description(
      'Forks a running VM, master VM or clone, as if a program in it had asked for COUNT clones. Programs in it and in the clones go\n' +
        'on where they were and are told nothing; the agent gives each clone its name and address. Prints the ticket, with which the\n' +
        "VM, or 'snowflock merge', gets rid of the clones.",
    )
    .argument('<vm>', 'CLUSTERID:VMID, for example 0:0', parseVm)
    .argument('<count>', 'how many clones', parseCount)
    .option('--min <count>', 'this many will do (default: all)', parseCount)
    .option(
      '--isolated',
      'clones stay off the network: for guests without an agent, whose clones would be the same machine',
    )
    .option('--json', 'print a JSON object instead')
    .option(...SOCKET_OPTION)
    .action(async (vm: string, count: number, { min, isolated, json, socket }: ForkOptions) => {
      await using system = openSystem({ socket });
      const reply = await system.vm(vm).fork(count, { min, isolated });
      process.stdout.write(json ? `${JSON.stringify(reply)}\n` : formatFork(reply));
      const failed = reply.clones.filter(({ ok }) => !ok);
      for (const clone of failed)
        process.stderr.write(`snowflock: VM ${clone.vm}: ${clone.reason ?? 'it could not be started'}\n`);
      if (failed.length > 0) throw new ExitStatus(EXIT_FAILURE);
    });
}
