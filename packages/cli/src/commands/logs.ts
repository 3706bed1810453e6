// snowflock logs: what the daemons of this host, or of a lab, have said, in the order of time.

import { Argument, Command, InvalidArgumentError } from 'commander';
import { setTimeout as sleep } from 'node:timers/promises';
import { parseVmRef } from '@snowflock/protocol';
import { interruptSignal } from '../failure.ts';
import { findLogFiles } from '../logs/log-files.ts';
import {
  formatLogEntry,
  jsonLogEntry,
  LOG_NAMES,
  passes,
  type LogFilter,
  type LogName,
} from '../logs/log-entry.ts';
import { LogFollower } from '../logs/log-follower.ts';
import { parseClusterid } from './arguments.ts';

const FOLLOW_INTERVAL_MS = 250;
const UNIT_MS: Readonly<Record<string, number>> = { s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 };

interface LogsOptions {
  readonly lab?: string;
  readonly host?: string;
  readonly cluster?: number;
  readonly vm?: { clusterid: number; vmid: number };
  readonly ticket?: string;
  readonly since?: number;
  readonly follow?: boolean;
  readonly json?: boolean;
}

/** Milliseconds of '90s', '10m', '2h', '1d'. */
export function parseAge(text: string): number {
  const [, count, unit = ''] = /^(\d{1,6})([smhd])$/.exec(text) ?? [];
  const unitMs = UNIT_MS[unit];
  if (count === undefined || unitMs === undefined)
    throw new InvalidArgumentError('It must be an age such as 90s, 10m, 2h or 1d.');
  return Number(count) * unitMs;
}

function parseVm(text: string): { clusterid: number; vmid: number } {
  try {
    return parseVmRef(text);
  } catch {
    throw new InvalidArgumentError('It must be a VM such as 0:1; sfstate lists them.');
  }
}

function parseTicket(text: string): string {
  if (!/^[0-9a-f-]{4,36}$/.test(text))
    throw new InvalidArgumentError('It must be a ticket, or its beginning.');
  return text;
}

export function logsCommand(): Command {
  return new Command('logs')
    .summary('show what the daemons said')
    .description(
      "Prints the logs of this host's daemons, or of a lab's hosts, in the order of time. Without names all are shown.",
    )
    .addArgument(new Argument('[names...]', 'whose').choices(LOG_NAMES))
    .option('--host <host>', 'only of this host')
    .option('--cluster <clusterid>', 'only what concerns this cluster', parseClusterid)
    .option('--vm <vm>', 'only what concerns this VM (clusterid:vmid)', parseVm)
    .option('--ticket <ticket>', 'only what concerns this ticket (or the one that begins so)', parseTicket)
    .option('--since <age>', 'only what is younger: 90s, 10m, 2h, 1d', parseAge)
    .option('--follow', 'go on until Ctrl-C')
    .option('--lab <name>', 'of this lab, whatever is configured on this machine')
    .option('--json', 'print JSON objects, one a line')
    .action(async (names: LogName[], options: LogsOptions) => {
      const files = findLogFiles({ lab: options.lab, host: options.host, names });
      const filter: LogFilter = {
        sinceMs: options.since === undefined ? undefined : Date.now() - options.since,
        clusterid: options.vm?.clusterid ?? options.cluster,
        vmid: options.vm?.vmid,
        ticket: options.ticket,
      };
      const hosts = new Set(files.map((file) => file.host)).size > 1;
      const follower = new LogFollower(files);
      const signal = options.follow ? interruptSignal() : AbortSignal.abort();
      do {
        const entries = (await follower.read()).filter((entry) => passes(entry, filter));
        const lines = entries.map((entry) =>
          options.json ? jsonLogEntry(entry) : formatLogEntry(entry, { hosts }),
        );
        if (lines.length > 0) process.stdout.write(`${lines.join('\n')}\n`);
      } while (await pause(signal));
    });
}

/** False when it is time to end. */
async function pause(signal: AbortSignal): Promise<boolean> {
  await sleep(FOLLOW_INTERVAL_MS, undefined, { signal }).catch(() => undefined); // interrupted
  return !signal.aborted;
}
