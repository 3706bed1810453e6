// sfmd|sfld start|stop|status|run [--config FILE]: one command line for both daemons (manual sections 4, 11 and 12).

import { parseArgs } from 'node:util';
import { toSnowflockError } from '@snowflock/protocol';
import { start, status, stop, type DaemonState } from './background.ts';
import type { DaemonConfig, DaemonProgram } from './daemon-program.ts';
import { createLog } from './log.ts';

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
    args,
    allowPositionals: true,
    options: {
      config: { type: 'string', default: `/etc/snowflock/${program.name}.cfg` },
      pretty: { type: 'boolean', default: false },
      debug: { type: 'boolean', default: false },
      help: { type: 'boolean', short: 'h', default: false },
    },
  });
  if (values.help) {
    console.log(usage(program));
    return 0;
  }
  const [command = '', ...rest] = positionals;
  if (rest.length > 0 || !['start', 'stop', 'status', 'run'].includes(command)) {
    console.error(usage(program));
    return USAGE_EXIT;
  }
  const config = program.readConfig(values.config);
  switch (command) {
    case 'start':
      console.log(await start(program, config, values.config));
      return 0;
    case 'stop':
      console.log(await stop(program, config));
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

async function runInForeground<C extends DaemonConfig>(
  program: DaemonProgram<C>,
  config: C,
  { pretty, debug }: { pretty: boolean; debug: boolean },
): Promise<void> {
  const log = createLog({ name: program.name, pretty, level: debug ? 'debug' : 'info' });
  const stopping = new AbortController();
  for (const name of ['SIGTERM', 'SIGINT'] as const) process.on(name, () => stopping.abort());
  const onReady = (port: number): void => console.log(JSON.stringify({ ready: true, port }));
  await program.run(config, { log, onReady, signal: stopping.signal });
}

function usage({ name, title, whenStopped }: Omit<DaemonProgram<never>, 'readConfig'>): string {
  return `usage: ${name} start|stop|status|run [--config FILE] [--pretty] [--debug]

  start    starts ${title} in the background; ready when this returns
  stop     stops it; ${whenStopped}
  status   says how it does (exit status 3: it does not run; 4: it does not answer)
  run      runs it in the foreground; prints {"ready":true,"port":N} when it listens; logs to stderr

FILE is /etc/snowflock/${name}.cfg when not given (docs/configuration.md).`;
}
