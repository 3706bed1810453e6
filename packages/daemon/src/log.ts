// The daemons' log: one JSON object per line on stderr, or one readable line when asked. Keys never reach it.

import pino from 'pino';

export type Log = pino.Logger;

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
