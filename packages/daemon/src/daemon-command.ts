// sfmd|sfld start|stop|status|run [--config FILE] [--OPTION VALUE]...: one command line for both daemons (manual sections 4, 11 and 12).

import { existsSync } from 'node:fs';
import { resolve } from 'node:path';
import { parseArgs } from 'node:util';
import { flagOf, formatEffective, readConfigText, toSnowflockError } from '@snowflock/protocol';
import { start, status, stop, type DaemonState } from './background.ts';
import type { DaemonConfig, DaemonProgram } from './daemon-program.ts';
import { createLog } from './log.ts';
import { ServiceManager } from './service-manager.ts';

/** As of the Linux Standard Base. */
const STATUS_EXIT: Record<DaemonState, number> = { running: 0, 'not-running': 3, silent: 4 };
const USAGE_EXIT = 2;

/** Answers the exit status of the process. */
export async function daemonCommand<C extends DaemonConfig>(
  program: DaemonProgram<C>,
  args: string[],
): Promise<number> {
  try {
    return await dispatch(program, args);
  } catch (error) {
    console.error(`${program.name}: ${toSnowflockError(error).message}`);
    // parseArgs throws TypeErrors.
    return error instanceof TypeError ? USAGE_EXIT : 1;
  }
}

async function dispatch<C extends DaemonConfig>(program: DaemonProgram<C>, args: string[]): Promise<number> {
  const { values, positionals } = parseArgs({
    // Options are spelled with _ in files, and with - or _ here.
    args: args.map((arg) =>
      arg.startsWith('--') ? arg.replace(/^[^=]*/, (name) => name.replaceAll('_', '-')) : arg,
    ),
    allowPositionals: true,
    options: {
      ...Object.fromEntries(
        program.options.map((name) => [flagOf(name).slice(2), { type: 'string' as const }]),
      ),
      config: { type: 'string' },
      check: { type: 'boolean', default: false },
      pretty: { type: 'boolean', default: false },
      debug: { type: 'boolean', default: false },
      vms: { type: 'boolean', default: false },
      help: { type: 'boolean', short: 'h', default: false },
    },
  });
  if (values.help) {
    console.log(usage(program));
    return 0;
  }
  const [command = '', ...rest] = positionals;
  const misplaced =
    (values.vms && (command !== 'stop' || !program.endVms)) ||
    (values.check && command !== 'run' && command !== 'start');
  if (rest.length > 0 || misplaced || !['start', 'stop', 'status', 'run'].includes(command)) {
    console.error(usage(program));
    return USAGE_EXIT;
  }
  const given: Readonly<Record<string, unknown>> = values;
  const flags = Object.fromEntries(
    program.options.map((name) => {
      const value = given[flagOf(name).slice(2)];
      return [name, typeof value === 'string' ? value : undefined];
    }),
  );
  const fileName = values.config ?? `/etc/snowflock/${program.name}.cfg`;
  // The default file may be absent, when environment and flags say enough; one that was named may not.
  const text = values.config === undefined && !existsSync(fileName) ? null : readConfigText(fileName);
  const { config, effective } = program.configure({ fileName, text, env: process.env, flags });
  if (values.check) {
    console.log(formatEffective(effective));
    return 0;
  }
  switch (command) {
    case 'start':
      console.log(await start(program, config, runArguments(fileName, text, flags)));
      return 0;
    case 'stop':
      console.log(await stop(program, config, { vms: values.vms }));
      return 0;
    case 'status': {
      const { state, text } = await status(program, config);
      console.log(text);
      return STATUS_EXIT[state];
    }
    default:
      await runInForeground(program, config, { pretty: values.pretty, debug: values.debug });
      return 0;
  }
}

/** So that `run` in the background sees what `start` saw; the environment and the working directory are the same. */
function runArguments(
  fileName: string,
  text: string | null,
  flags: Readonly<Record<string, string | undefined>>,
): string[] {
  const named = text === null ? [] : ['--config', resolve(fileName)];
  return [
    ...named,
    ...Object.entries(flags).flatMap(([name, value]) =>
      value === undefined ? [] : [`${flagOf(name)}=${value}`],
    ),
  ];
}

async function runInForeground<C extends DaemonConfig>(
  program: DaemonProgram<C>,
  config: C,
  options: { pretty: boolean; debug: boolean },
): Promise<void> {
  const { pretty, debug } = options;
  const log = createLog({ name: program.name, pretty, level: debug ? 'debug' : 'info' });
  // All paths are known by now; nothing keeps the file system of where it was started, and nothing it makes is for others.
  process.chdir('/');
  process.umask(0o077);
  using serviceManager = new ServiceManager(log);
  const stopping = new AbortController();
  for (const name of ['SIGTERM', 'SIGINT'] as const) process.on(name, () => stopping.abort());
  stopping.signal.addEventListener('abort', () => void serviceManager.stopping(), { once: true });
  const onReady = (port: number): void => {
    console.log(JSON.stringify({ ready: true, port }));
    void serviceManager.ready(`listening on port ${port}`);
  };
  await program.run(config, { log, onReady, signal: stopping.signal });
}

function usage(
  program: Pick<DaemonProgram<never>, 'name' | 'title' | 'whenStopped' | 'endVms' | 'options'>,
): string {
  const { name, title, whenStopped, endVms } = program;
  const options = program.options.map((option) => flagOf(option)).join(' ');
  const vms = endVms ? '\n  stop --vms  ends them too' : '';
  return `usage: ${name} start|stop|status|run [--config FILE] [--OPTION VALUE]... [--check] [--pretty] [--debug]

  start    starts ${title} in the background; ready when this returns
  stop     stops it; ${whenStopped}${vms}
  status   says how it does (exit status 3: it does not run; 4: it does not answer)
  run      runs it in the foreground; prints {"ready":true,"port":N} when it listens; logs to stderr

  --check  with start or run: says what the configuration comes to and where each value is from, and does nothing

FILE is /etc/snowflock/${name}.cfg when not given. Flags come before the environment (SNOWFLOCK_OPTION), that before the
file, that before the defaults (docs/configuration.md). Options: ${options}`;
}
