// sfseed CFGFILE (manual section 4): starts a cluster's master VM.

import { Command } from 'commander';
import { readSeedConfig, SeedReply } from '@snowflock/protocol';
import { openClient, SOCKET_OPTION } from './sfld-socket.ts';

/** Placing and starting a VM; its image may have to be read from a slow disk. Not its boot. */
const SEED_TIMEOUT_MS = 120_000;

/** As the manual shows it: a Python tuple of domain id (the clusterid) and IP address. */
export function formatSeedReply({ clusterid, ip }: SeedReply): string {
  return `(${clusterid}, '${ip}')`;
}

export function sfseedProgram(): Command {
  return new Command('sfseed')
    .summary('start a master VM')
    .description(
      'Starts the master VM of a new cluster and prints its domain id (which is the clusterid) and its IP address.\n' +
        'CFGFILE has the keys disk_image (a path, or the name of a built image), vcpus and memory (MiB).',
    )
    .argument('<cfgfile>', 'configuration of the VM')
    .option('--json', 'print a JSON object instead')
    .option(...SOCKET_OPTION)
    .action(async (cfgfile: string, options: { json?: boolean; socket?: string }) => {
      const body = readSeedConfig(cfgfile);
      using client = openClient(options);
      const path = '/v1/master/clusters';
      const reply = await client.request({
        method: 'POST',
        path,
        body,
        reply: SeedReply,
        timeoutMs: SEED_TIMEOUT_MS,
      });
      process.stdout.write(`${options.json ? JSON.stringify(reply) : formatSeedReply(reply)}\n`);
    });
}
