// sfmd start|stop|status|run [--config FILE]: the master daemon (manual sections 4 and 12).

import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { readSfmdConfig, toSnowflockError } from '@snowflock/protocol';
import { createLog } from '../log.ts';
import { start, status, stop } from './control.ts';
import { runSfmd } from './run.ts';

const USAGE = `usage: sfmd start|stop|status|run [--config FILE] [--pretty] [--debug]

  start    starts the master daemon in the background; ready when this returns
  stop     stops it; virtual machines run on
  status   says whether it runs (exit status 3: it does not)
  run      runs it in the foreground; prints {"ready":true,"port":N} when it listens; logs to stderr

FILE is /etc/snowflock/sfmd.cfg when not given (docs/configuration.md).`;
/** As of the Linux Standard Base: the program is not running. */
const NOT_RUNNING = 3;

async function main(args: string[]): Promise<number> {
  const { values, positionals } = parseArgs({
    args,
    allowPositionals: true,
    options: {
      config: { type: 'string', default: '/etc/snowflock/sfmd.cfg' },
      pretty: { type: 'boolean', default: false },
      debug: { type: 'boolean', default: false },
      help: { type: 'boolean', short: 'h', default: false },
    },
  });
  const [command, ...rest] = positionals;
  if (values.help) {
    console.log(USAGE);
    return 0;
  }
  if (command === undefined || rest.length > 0 || !['start', 'stop', 'status', 'run'].includes(command)) {
    console.error(USAGE);
    return 2;
  }
  const config = readSfmdConfig(values.config);
  switch (command) {
    case 'start':
      console.log(await start(config, { main: fileURLToPath(import.meta.url), configFile: values.config }));
      return 0;
    case 'stop':
      console.log(await stop(config));
      return 0;
    case 'status': {
      const { running, text } = await status(config);
      console.log(text);
      return running ? 0 : NOT_RUNNING;
    }
    default: {
      const log = createLog({ name: 'sfmd', pretty: values.pretty, level: values.debug ? 'debug' : 'info' });
      const stopping = new AbortController();
      for (const name of ['SIGTERM', 'SIGINT'] as const) process.on(name, () => stopping.abort());
      const onReady = (port: number): void => console.log(JSON.stringify({ ready: true, port }));
      await runSfmd(config, { log, onReady, signal: stopping.signal });
      return 0;
    }
  }
}

try {
  process.exitCode = await main(process.argv.slice(2));
} catch (error) {
  console.error(`sfmd: ${toSnowflockError(error).message}`);
  process.exitCode = error instanceof TypeError ? 2 : 1;
}
