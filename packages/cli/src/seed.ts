// sfseed CFGFILE (manual section 4): starts a cluster's master VM.

import { Command } from 'commander';
import type { SeedReply } from '@snowflock/protocol';
import { openSystem, SOCKET_OPTION } from './sfld-socket.ts';

/** As the manual shows it: a Python tuple of domain id (the clusterid) and IP address. */
export function formatSeedReply({ clusterid, ip }: Pick<SeedReply, 'clusterid' | 'ip'>): string {
  return `(${clusterid}, '${ip}')`;
}

export function sfseedProgram(): Command {
  return new Command('sfseed')
    .summary('start a master VM')
    .description(
      'Starts the master VM of a new cluster and prints its domain id (which is the clusterid) and its IP address.\n' +
        'CFGFILE has the keys disk_image (a path, or the name of a built image), vcpus and memory (MiB);\n' +
        'or the one key checkpoint, the name of a checkpoint to go on from.',
    )
    .argument('<cfgfile>', 'configuration of the VM')
    .option('--json', 'print a JSON object instead')
    .option(...SOCKET_OPTION)
    .action(async (cfgfile: string, options: { json?: boolean; socket?: string }) => {
      await using system = openSystem(options);
      const { clusterid, vmid, host, ip } = await system.seedFrom(cfgfile); // it is to stay
      const reply = { clusterid, vmid, host, ip };
      process.stdout.write(`${options.json ? JSON.stringify(reply) : formatSeedReply(reply)}\n`);
    });
}
