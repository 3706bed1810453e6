// Whether a lab's name is free, taken by a lab that works, or by the remains of one.

import { mkdir, rmdir } from 'node:fs/promises';
import { SnowflockError } from '@snowflock/protocol';
import { labNamespaces } from './leftovers.ts';
import { DEFAULT_LAB_NAME, hostName, labDir, labParent } from './names.ts';
import { isAlive, readRecord, type LabRecord } from './record.ts';
import { formatSize } from './size.ts';

/** What is wrong with a lab that should be up; undefined when nothing is. */
export function wholeness(record: LabRecord): string | undefined {
  if (record.phase !== 'up') return 'it is still being started, or its start was killed';
  for (const host of record.hosts) {
    if (!isAlive(host, host.holderPid)) return `the namespaces of ${hostName(host.k)} have lost their holder`;
    if (!isAlive(host, host.daemons.sfld)) return `sfld of ${hostName(host.k)} is dead`;
    if (host.k === 1 && !isAlive(host, host.daemons.sfmd)) return 'sfmd is dead';
  }
  return undefined;
}

export function downCommand(name: string): string {
  return name === DEFAULT_LAB_NAME ? 'snowflock lab down' : `snowflock lab down --name ${name}`;
}

export function halfDead(name: string, problem: string): SnowflockError {
  return new SnowflockError(
    'unavailable',
    `lab '${name}' is not whole: ${problem}; run '${downCommand(name)}' first`,
  );
}

/** Makes the lab's directory, which is what claims its name. */
export async function claimDir(name: string): Promise<void> {
  await mkdir(labParent(), { recursive: true, mode: 0o755 });
  try {
    await mkdir(labDir(name), { mode: 0o700 });
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
    const record = await readRecord(name);
    const problem = record ? wholeness(record) : 'its record is missing';
    if (problem !== undefined || !record) throw halfDead(name, problem ?? '');
    const what = `hosts: ${record.hostCount}, each of ${record.cpus} CPUs and ${formatSize(record.ramBytes)}`;
    const text = `lab '${name}' is up already (${what}); '${downCommand(name)}' takes it down`;
    throw new SnowflockError('bad-request', text, { cause: error });
  }
  const stray = await labNamespaces(name);
  if (stray.length === 0) return;
  await rmdir(labDir(name));
  throw halfDead(name, `namespaces ${stray.join(', ')} are left of an earlier one`);
}
