// snowflock shutdown CLUSTERID

import { Command } from 'commander';
import { NoReply } from '@snowflock/protocol';
import { openClient, SOCKET_OPTION } from '../sfld-socket.ts';
import { parseClusterid } from './arguments.ts';

/** Ends every VM of the cluster, on all hosts. */
const SHUTDOWN_TIMEOUT_MS = 60_000;

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
      using client = openClient(options);
      const path = `/v1/master/clusters/${clusterid}${options.force ? '?force=1' : ''}`;
      await client.request({ method: 'DELETE', path, reply: NoReply, timeoutMs: SHUTDOWN_TIMEOUT_MS });
    });
}
