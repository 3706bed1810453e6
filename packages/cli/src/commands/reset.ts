// snowflock reset VM

import { Command } from 'commander';
import { openSystem, SOCKET_OPTION } from '../sfld-socket.ts';
import { parseVm } from './arguments.ts';

export function resetCommand(): Command {
  return new Command('reset')
    .summary('put a clone back to its fork point')
    .description(
      'Puts a clone back to where it was when clone_master returned in it: memory, disk and programs, with the same vmid and addresses,\n' +
        'a right clock and fresh randomness. What it had done since is gone. Refused for a master VM, and for a clone with tickets of its own.',
    )
    .argument('<vm>', 'clusterid:vmid', parseVm)
    .option(...SOCKET_OPTION)
    .action(async (vm: string, options: { socket?: string }) => {
      await using system = openSystem(options);
      await system.vm(vm).reset();
    });
}
