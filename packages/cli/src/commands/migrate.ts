// snowflock migrate VM HOST

import { Command } from 'commander';
import { openSystem, SOCKET_OPTION } from '../sfld-socket.ts';
import { parseVm } from './arguments.ts';

export function migrateCommand(): Command {
  return new Command('migrate')
    .summary('take a running VM to another host')
    .description(
      'Takes a running VM, master VM or clone, to another host, where it goes on as who it is: name and addresses, tickets and clones,\n' +
        'open connections inside its cluster, and calls that its programs wait for. Its memory and disk follow in the background; until all\n' +
        'is there, it is lost if the host that it came from is. When it cannot be started there it goes on where it was. Commands of\n' +
        "'snowflock exec' run on, their output is lost. A clone that was migrated cannot be reset.",
    )
    .argument('<vm>', 'clusterid:vmid', parseVm)
    .argument('<host>', 'name of the host, as sfstate shows it')
    .option('--json', 'print a JSON object instead')
    .option(...SOCKET_OPTION)
    .action(async (vm: string, host: string, { json, socket }: { json?: boolean; socket?: string }) => {
      await using system = openSystem({ socket });
      const reply = await system.vm(vm).migrate({ host });
      const paused = reply.pausedMs === null ? '' : `, paused for ${Math.round(reply.pausedMs)} ms`;
      process.stdout.write(json ? `${JSON.stringify(reply)}\n` : `VM ${vm} runs on ${reply.host}${paused}\n`);
    });
}
