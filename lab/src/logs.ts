// Where the hosts of a lab have their logs.

import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { hostDir, hostName, LAB_HOSTS_MAX } from './names.ts';
import { daemonLog } from './processes.ts';

export interface LabLog {
  readonly host: string;
  readonly name: 'sfmd' | 'sfld' | 'memserver' | 'memtap' | 'router';
  /** May not be there yet. */
  readonly path: string;
}

/** Empty when there is no such lab. */
export function labLogs(lab: string): LabLog[] {
  const logs: LabLog[] = [];
  for (let k = 1; k <= LAB_HOSTS_MAX && existsSync(hostDir(lab, k)); k++) {
    const host = hostName(k);
    if (k === 1) logs.push({ host, name: 'sfmd', path: daemonLog({ name: lab, k, daemon: 'sfmd' }) });
    logs.push({ host, name: 'sfld', path: daemonLog({ name: lab, k, daemon: 'sfld' }) });
    for (const name of ['memserver', 'memtap', 'router'] as const)
      logs.push({ host, name, path: join(hostDir(lab, k), 'run', `${name}.log`) });
  }
  return logs;
}
