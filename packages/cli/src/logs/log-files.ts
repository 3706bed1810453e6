// Where the logs are: of this host's daemons, as their configuration says, or of all hosts of a lab.

import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { labLogs, DEFAULT_LAB_NAME } from '@snowflock/lab';
import { readSfldConfig, readSfmdConfig, SnowflockError } from '@snowflock/protocol';
import { LOG_NAMES, type LogName } from './log-entry.ts';
import type { LogFile } from './log-follower.ts';

const CONFIG_DIR = '/etc/snowflock';

export interface LogChoice {
  readonly lab?: string | undefined;
  readonly host?: string | undefined;
  readonly names: readonly LogName[];
  /** Where sfmd.cfg and sfld.cfg are. */
  readonly configDir?: string;
}

/** Throws when there is nothing of what was asked for. */
export function findLogFiles({ lab, host, names, configDir = CONFIG_DIR }: LogChoice): LogFile[] {
  const own = lab === undefined ? hostLogs(configDir) : [];
  const all = own.length > 0 ? own : labLogs(lab ?? DEFAULT_LAB_NAME);
  if (all.length === 0)
    throw new SnowflockError(
      'unavailable',
      lab === undefined
        ? `no daemon is configured here (no ${configDir}/sfld.cfg, no ${configDir}/sfmd.cfg), and there is no lab`
        : `there is no lab '${lab}'; snowflock lab status`,
    );
  const hosts = [...new Set(all.map((file) => file.host))];
  if (host !== undefined && !hosts.includes(host))
    throw new SnowflockError(
      'bad-request',
      `there are no logs of host '${host}' here, only of ${hosts.join(', ')}`,
    );
  const wanted = names.length === 0 ? LOG_NAMES : names;
  return all.filter((file) => wanted.includes(file.name) && (host === undefined || file.host === host));
}

/** Of daemons that `sfmd start` and `sfld start` put into the background. */
function hostLogs(configDir: string): LogFile[] {
  const files: LogFile[] = [];
  const sfmdFile = join(configDir, 'sfmd.cfg');
  const sfldFile = join(configDir, 'sfld.cfg');
  let host = 'localhost';
  if (existsSync(sfldFile)) {
    const { hostname, stateDir, runDir } = readSfldConfig(sfldFile);
    host = hostname;
    files.push(
      { host, name: 'sfld', path: join(stateDir, 'sfld.log') },
      { host, name: 'memserver', path: join(runDir, 'memserver.log') },
      { host, name: 'memtap', path: join(runDir, 'memtap.log') },
      { host, name: 'router', path: join(runDir, 'router.log') },
    );
  }
  if (existsSync(sfmdFile)) {
    const { stateDir } = readSfmdConfig(sfmdFile);
    files.push({ host, name: 'sfmd', path: join(stateDir, 'sfmd.log') });
  }
  return files;
}
