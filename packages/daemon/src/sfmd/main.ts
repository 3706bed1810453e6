// sfmd start|stop|status|run [--config FILE] [--OPTION VALUE]: the master daemon (manual sections 4 and 12).

import { fileURLToPath } from 'node:url';
import { configureSfmd, SFMD_OPTIONS, SystemState } from '@snowflock/protocol';
import { daemonCommand } from '../daemon-command.ts';
import { runSfmd } from './run.ts';

const STATUS_TIMEOUT_MS = 5000;

process.exitCode = await daemonCommand(
  {
    name: 'sfmd',
    title: 'the master daemon',
    whenStopped: 'virtual machines run on',
    main: fileURLToPath(import.meta.url),
    // Starting takes under a second; a loaded machine may need several.
    readyTimeoutMs: 20_000,
    // It closes its listeners within 2 s.
    stopTimeoutMs: 8000,
    options: SFMD_OPTIONS,
    configure: configureSfmd,
    run: runSfmd,
    async describe(client) {
      const { hosts, clusters } = await client.request({
        method: 'GET',
        path: '/v1/state',
        reply: SystemState,
        timeoutMs: STATUS_TIMEOUT_MS,
      });
      const up = hosts.filter((host) => host.up).length;
      return `${up} of ${hosts.length} hosts up, ${clusters.length} clusters`;
    },
  },
  process.argv.slice(2),
);
