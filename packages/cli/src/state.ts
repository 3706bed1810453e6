// sfstate (manual section 4): all hosts, clusters, VMs and tickets.

import { Command } from 'commander';
import type { SystemState } from '@snowflock/protocol';
import { interruptSignal } from './failure.ts';
import { openSystem, SOCKET_OPTION } from './sfld-socket.ts';
import { formatState } from './state-format.ts';
import { watchState } from './state-watch.ts';

export function sfstateProgram(): Command {
  return new Command('sfstate')
    .summary('show hosts, clusters, VMs and tickets')
    .description(
      'Prints all hosts of the system with what is free on them, and every cluster with its VMs and tickets.',
    )
    .option('--json', 'print everything as one JSON object; with --watch one a line, at every change')
    .option(
      '--watch',
      'show it until Ctrl-C: a terminal is drawn anew at every change, a pipe gets a line for each',
    )
    .option('--fetched', 'with what each running clone has fetched of its parent, and how it waited for it')
    .option(...SOCKET_OPTION)
    .action(async (options: { json?: boolean; watch?: boolean; fetched?: boolean; socket?: string }) => {
      await using system = openSystem(options);
      const { json = false, fetched = false } = options;
      const look = (signal?: AbortSignal): Promise<SystemState> => system.state({ signal, fetched });
      if (options.watch) {
        // awaited here: the system is closed when this returns
        return await watchState(look, { output: process.stdout, json, signal: interruptSignal() });
      }
      const state = await look();
      const width = process.stdout.isTTY ? process.stdout.columns : undefined;
      process.stdout.write(json ? `${JSON.stringify(state)}\n` : formatState(state, { width }));
    });
}
