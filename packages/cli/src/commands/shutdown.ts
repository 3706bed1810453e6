// snowflock shutdown CLUSTERID

import { Command } from 'commander';
import { openSystem, SOCKET_OPTION } from '../sfld-socket.ts';
import { parseClusterid } from './arguments.ts';

export function shutdownCommand(): Command {
  return new Command('shutdown')
    .summary('shut down a cluster')
    .description(
      'Shuts down a cluster: its master VM, and with --force also clones that have not been merged. All disk state is lost.',
    )
    .argument('<clusterid>', 'sfstate lists them', parseClusterid)
    .option('--force', 'also with tickets outstanding')
    .option(...SOCKET_OPTION)
    .action(async (clusterid: number, options: { force?: boolean; socket?: string }) => {
      await using system = openSystem(options);
      await system.shutdown(clusterid, { force: options.force ?? false });
    });
}
