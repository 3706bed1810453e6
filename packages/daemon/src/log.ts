// The daemons' log: one JSON object per line on stderr, or one readable line when asked. Keys never reach it.

import pino from 'pino';

export type Log = pino.Logger;

/** What a line is about. These names, and no others: whoever reads logs filters by them (`snowflock logs`). */
export interface LogSubject {
  readonly clusterid?: number | undefined;
  readonly vmid?: number | undefined;
  readonly ticket?: string | null | undefined;
}

/** A log whose every line says what it is about. */
export function logAbout(log: Log, subject: LogSubject): Log {
  return log.child(subjectFields(subject));
}

/** Those that are known, and nothing else that the object may hold: not everything may be logged. */
export function subjectFields({ clusterid, vmid, ticket }: LogSubject): LogSubject {
  return {
    ...(clusterid === undefined ? {} : { clusterid }),
    ...(vmid === undefined ? {} : { vmid }),
    ...(ticket === undefined || ticket === null ? {} : { ticket }),
  };
}

/** From the parameters of a request's path: `clusterid`, `vmid`, `ticket`, or `vm` as C:V. */
export function subjectOfPath(params: Readonly<Record<string, string>>): LogSubject {
  const [, cluster, vm] = /^(\d{1,9}):(\d{1,9})$/.exec(params['vm'] ?? '') ?? [];
  const number = (text: string | undefined): number | undefined =>
    text !== undefined && /^\d{1,9}$/.test(text) ? Number(text) : undefined;
  return subjectFields({
    clusterid: number(params['clusterid'] ?? cluster),
    vmid: number(params['vmid'] ?? vm),
    ticket: params['ticket']?.slice(0, 36),
  });
}

/** Fields that are secret wherever they stand, to a depth of three. */
const SECRET_FIELDS = ['key', 'keyHex', 'tlsKey', 'entropy', 'token', 'password', 'authorization'] as const;
const SECRET_PATHS = SECRET_FIELDS.flatMap((field) => [field, `*.${field}`, `*.*.${field}`]);

export interface LogOptions {
  /** Name of the daemon, in every line. */
  readonly name: string;
  readonly level?: 'trace' | 'debug' | 'info' | 'warn' | 'error' | 'silent';
  /** One readable line per entry, for a person at a terminal. */
  readonly pretty?: boolean;
  /** Where lines go; stderr if absent. */
  readonly write?: (line: string) => void;
}

export function createLog({ name, level = 'info', pretty = false, write }: LogOptions): Log {
  // Synchronous: the last words of a daemon that crashes are what one looks for.
  const stderr = pino.destination({ dest: 2, sync: true });
  const out = write ?? ((line: string): void => void stderr.write(line));
  const options: pino.LoggerOptions = {
    name,
    level,
    base: { name, pid: process.pid },
    timestamp: pino.stdTimeFunctions.isoTime,
    formatters: { level: (label) => ({ level: label }) },
    redact: { paths: SECRET_PATHS, censor: '[secret]' },
  };
  return pino(options, { write: (line: string) => out(pretty ? prettyLine(line) : line) });
}

/** A log that says nothing, for tests and embedding. */
export function silentLog(): Log {
  return createLog({ name: 'silent', level: 'silent' });
}

function prettyLine(line: string): string {
  const { time, level, name, msg, pid: _pid, ...rest } = JSON.parse(line) as Record<string, unknown>;
  const fields = Object.entries(rest).map(
    ([key, value]) => `${key}=${typeof value === 'string' ? value : JSON.stringify(value)}`,
  );
  return [time, String(level).toUpperCase().padEnd(5), `${String(name)}:`, msg, ...fields].join(' ') + '\n';
}
