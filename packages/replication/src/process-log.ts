// What memservers and memtaps say on standard error: one JSON object a line, as the daemons write it (daemon/src/log.ts), with
// the cluster and the ticket that the process works for. Keys come over control sockets and are never logged.

import { format } from 'node:util';
import { SnowflockError } from '@snowflock/protocol/pages';

/** Whom a process works for; the names are those of every daemon's log. */
export interface LogSubject {
  readonly clusterid?: number;
  readonly ticket?: string;
}

/** As the process's argument: `--log-fields JSON`. */
export function logArguments(subject: LogSubject | undefined): string[] {
  return subject === undefined ? [] : ['--log-fields', JSON.stringify(subject)];
}

export function logLine(name: string, subject: LogSubject, message: string): string {
  const time = new Date().toISOString();
  const msg = message.startsWith(`${name}: `) ? message.slice(name.length + 2) : message;
  return `${JSON.stringify({ level: 'error', time, name, pid: process.pid, ...subject, msg })}\n`;
}

/** From here on console.error of this process writes such lines. What Node itself says (a crash) stays as it is. */
export function structureConsole(name: string, fields: string | undefined): void {
  const subject = readSubject(name, fields);
  console.error = (...args: unknown[]) => void process.stderr.write(logLine(name, subject, format(...args)));
}

function readSubject(name: string, fields: string | undefined): LogSubject {
  if (fields === undefined) return {};
  try {
    const { clusterid, ticket } = JSON.parse(fields) as Record<string, unknown>;
    return {
      ...(typeof clusterid === 'number' ? { clusterid } : {}),
      ...(typeof ticket === 'string' ? { ticket } : {}),
    };
  } catch (error) {
    throw new SnowflockError('bad-config', `${name}: --log-fields is not JSON: ${fields}`, { cause: error });
  }
}
