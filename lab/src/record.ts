// lab.json: what a lab is made of, for the processes that come after the one that made it. Written whole, by rename.

import { readFileSync } from 'node:fs';
import { readFile, rename, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { SnowflockError } from '@snowflock/protocol';
import { labDir, namespaceOf } from './names.ts';

export type DaemonName = 'sfmd' | 'sfld';

export interface HostRecord {
  readonly k: number;
  /** The process that keeps the host's namespaces. */
  readonly holderPid: number;
  /** Of the network namespace, as /proc/PID/ns/net shows it: tells the lab's processes from all others. */
  readonly netInode: string;
  readonly daemons: Partial<Record<DaemonName, number>>;
}

export interface LabRecord {
  readonly version: 1;
  readonly name: string;
  readonly phase: 'starting' | 'up';
  readonly cpus: number;
  readonly ramBytes: number;
  readonly hostCount: number;
  readonly hosts: readonly HostRecord[];
}

function recordPath(name: string): string {
  return join(labDir(name), 'lab.json');
}

export async function writeRecord(record: LabRecord): Promise<void> {
  const path = recordPath(record.name);
  await writeFile(`${path}.new`, JSON.stringify(record, null, 2) + '\n');
  await rename(`${path}.new`, path);
}

function isHostRecord(value: unknown): value is HostRecord {
  if (typeof value !== 'object' || value === null) return false;
  const host = value as Partial<Record<keyof HostRecord, unknown>>;
  return (
    Number.isInteger(host.k) &&
    Number.isInteger(host.holderPid) &&
    typeof host.netInode === 'string' &&
    typeof host.daemons === 'object' &&
    host.daemons !== null &&
    Object.values(host.daemons).every(Number.isInteger)
  );
}

function isRecord(value: unknown): value is LabRecord {
  if (typeof value !== 'object' || value === null) return false;
  const record = value as Partial<Record<keyof LabRecord, unknown>>;
  return (
    record.version === 1 &&
    (record.phase === 'starting' || record.phase === 'up') &&
    Number.isInteger(record.cpus) &&
    Number.isInteger(record.ramBytes) &&
    Number.isInteger(record.hostCount) &&
    Array.isArray(record.hosts) &&
    record.hosts.every(isHostRecord)
  );
}

/** undefined when there is none, or none that makes sense: a lab that died half-way. */
export async function readRecord(name: string): Promise<LabRecord | undefined> {
  try {
    const value: unknown = JSON.parse(await readFile(recordPath(name), 'utf8'));
    return isRecord(value) && value.name === name ? value : undefined;
  } catch (error) {
    if (error instanceof SyntaxError || (error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw new SnowflockError('internal', `cannot read ${recordPath(name)}: ${(error as Error).message}`, {
      cause: error,
    });
  }
}

function isZombie(pid: number): boolean {
  try {
    return / [ZX] /.test(readFileSync(`/proc/${pid}/stat`, 'latin1').replace(/^.*\)/s, ''));
  } catch {
    return true; // gone
  }
}

/** Whether the process is still the lab's: alive, and in the host's namespace. A reused pid is not. */
export function isAlive(host: HostRecord, pid: number | undefined): boolean {
  return pid !== undefined && namespaceOf(pid, 'net') === host.netInode && !isZombie(pid);
}

/** Network namespaces of a lab: those of its record, and what the caller knows of besides. */
export function networksOf(
  record: LabRecord | undefined,
  known: ReadonlySet<string> | undefined,
): ReadonlySet<string> {
  return new Set([...(known ?? []), ...(record?.hosts ?? []).map((host) => host.netInode)]);
}
