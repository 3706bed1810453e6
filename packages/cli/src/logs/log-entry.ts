// One line of a log, read and shown. Lines that are no JSON (a crash's stack) belong to the entry before them.

export const LOG_NAMES = ['sfmd', 'sfld', 'memserver', 'memtap', 'router'] as const;
export type LogName = (typeof LOG_NAMES)[number];

export interface LogEntry {
  /** Milliseconds since 1970. */
  readonly timeMs: number;
  readonly host: string;
  readonly name: LogName;
  readonly level: string;
  readonly message: string;
  /** All others, `clusterid`, `vmid` and `ticket` among them. */
  readonly fields: Readonly<Record<string, unknown>>;
}

/** What of an entry is shown. A ticket may be given by its beginning. */
export interface LogFilter {
  readonly sinceMs?: number | undefined;
  readonly clusterid?: number | undefined;
  readonly vmid?: number | undefined;
  readonly ticket?: string | undefined;
}

export function passes({ timeMs, fields }: LogEntry, filter: LogFilter): boolean {
  const { sinceMs, clusterid, vmid, ticket } = filter;
  if (sinceMs !== undefined && timeMs < sinceMs) return false;
  if (clusterid !== undefined && fields['clusterid'] !== clusterid) return false;
  if (vmid !== undefined && fields['vmid'] !== vmid) return false;
  const its = fields['ticket'];
  return ticket === undefined || (typeof its === 'string' && its.startsWith(ticket));
}

/** Null: this line says nothing to people (a readiness line). `before`: the entry that stands before it. */
export function parseLogLine(
  line: string,
  where: { readonly host: string; readonly name: LogName; readonly before: LogEntry | null },
): LogEntry | null {
  const { host, name, before } = where;
  const value = parseObject(line);
  if (!value) {
    if (line.trim() === '') return null;
    return {
      ...{
        timeMs: before?.timeMs ?? 0,
        host,
        name,
        level: before?.level ?? 'error',
        message: line.trimEnd(),
      },
      fields: subjectOf(before),
    };
  }
  if (value['ready'] === true && value['msg'] === undefined) return null;
  const { time, level, msg, name: _name, pid: _pid, ...fields } = value;
  const timeMs = typeof time === 'string' ? Date.parse(time) : Number.NaN;
  return {
    ...{ timeMs: Number.isNaN(timeMs) ? (before?.timeMs ?? 0) : timeMs, host, name, fields },
    level: typeof level === 'string' ? level : 'info',
    message: typeof msg === 'string' ? msg : '',
  };
}

function parseObject(line: string): Record<string, unknown> | null {
  if (!line.startsWith('{')) return null;
  try {
    return JSON.parse(line) as Record<string, unknown>;
  } catch {
    return null; // half a line, of a daemon that was killed
  }
}

function subjectOf(entry: LogEntry | null): Record<string, unknown> {
  const { clusterid, vmid, ticket } = entry?.fields ?? {};
  return Object.fromEntries(
    Object.entries({ clusterid, vmid, ticket }).filter(([, each]) => each !== undefined),
  );
}

/** One line; times are this machine's. */
export function formatLogEntry(entry: LogEntry, options: { readonly hosts: boolean }): string {
  const { timeMs, host, name, level, message, fields } = entry;
  const at = new Date(timeMs - new Date(timeMs).getTimezoneOffset() * 60_000).toISOString();
  const words = [
    at.slice(0, 23).replace('T', ' '),
    ...(options.hosts ? [host.padEnd(8)] : []),
    name.padEnd(9),
    level.toUpperCase().padEnd(5),
    printable(message),
    ...Object.entries(fields)
      .filter(([, value]) => value !== null)
      .map(([key, value]) => `${key}=${printable(formatValue(value))}`),
  ];
  return words.join(' ').trimEnd();
}

function formatValue(value: unknown): string {
  if (typeof value === 'string') return /[\s"]/.test(value) ? JSON.stringify(value) : value;
  // an error as pino writes it: its stack is for --json
  if (typeof value === 'object' && value !== null && 'message' in value && 'stack' in value)
    return JSON.stringify(value.message);
  return JSON.stringify(value);
}

/** Guests and strangers have a hand in what is logged: their control characters must not reach a terminal. */
function printable(text: string): string {
  return text.replace(
    /[\u0000-\u001f\u007f-\u009f]/g,
    (each) => `\\x${each.charCodeAt(0).toString(16).padStart(2, '0')}`,
  );
}

/** As JSON: the line as it was written, with its host. */
export function jsonLogEntry({ timeMs, host, name, level, message, fields }: LogEntry): string {
  return JSON.stringify({ time: new Date(timeMs).toISOString(), host, name, level, msg: message, ...fields });
}
