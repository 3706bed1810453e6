// sfld start|stop|status|run [--config FILE] [--OPTION VALUE]: the local daemon of a host (manual sections 4 and 11).

import { fileURLToPath } from 'node:url';
import {
  HostState,
  NoReply,
  configureSfld,
  SFLD_OPTIONS,
  SystemState,
  type ControlClient,
} from '@snowflock/protocol';
import { daemonCommand } from '../daemon-command.ts';
import { runSfld } from './run.ts';

const STATUS_TIMEOUT_MS = 5000;
/** They end all at once; gigabytes of memory take the kernel a while to free. */
const END_VMS_TIMEOUT_MS = 30_000;
/** A master daemon that answers later than this is of no use to people either. */
const MASTER_TIMEOUT_MS = 3000;

process.exitCode = await daemonCommand(
  {
    name: 'sfld',
    title: 'the local daemon of this host',
    whenStopped: 'the virtual machines of this host run on, and the next start takes them over',
    endVms: (client) =>
      client.request({ method: 'DELETE', path: '/v1/vms', reply: NoReply, timeoutMs: END_VMS_TIMEOUT_MS }),
    main: fileURLToPath(import.meta.url),
    // It removes leftovers and measures the accelerator first: seconds, and more on a loaded machine.
    readyTimeoutMs: 60_000,
    // A fork that is under way is finished first.
    stopTimeoutMs: 30_000,
    options: SFLD_OPTIONS,
    configure: configureSfld,
    run: runSfld,
    async describe(client) {
      const { masters, clones } = await client.request({
        method: 'GET',
        path: '/v1/state',
        reply: HostState,
        timeoutMs: STATUS_TIMEOUT_MS,
      });
      const vms = masters.length + clones.length;
      const reachable = await isMasterReachable(client);
      return `${vms} VM${vms === 1 ? '' : 's'}, sfmd ${reachable ? 'reachable' : 'unreachable'}`;
    },
  },
  process.argv.slice(2),
);

/** Asked through sfld, with its certificate and from its host. */
async function isMasterReachable(client: ControlClient): Promise<boolean> {
  try {
    await client.request({
      method: 'GET',
      path: '/v1/master/state',
      reply: SystemState,
      timeoutMs: MASTER_TIMEOUT_MS,
    });
    return true;
  } catch {
    return false; // why is in sfld's log
  }
}
