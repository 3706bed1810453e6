// sfld run --config FILE: the local daemon in the foreground (manual section 11).

import { parseArgs } from 'node:util';
import { readSfldConfig, toSnowflockError } from '@snowflock/protocol';
import { createLog } from '../log.ts';
import { runSfld } from './run.ts';

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    config: { type: 'string', default: '/etc/snowflock/sfld.cfg' },
    pretty: { type: 'boolean', default: false },
  },
});
if (positionals[0] !== 'run') {
  console.error('usage: sfld run [--config FILE]');
  process.exit(2);
}
const log = createLog({ name: 'sfld', pretty: values.pretty });
const stop = new AbortController();
for (const name of ['SIGTERM', 'SIGINT'] as const) process.once(name, () => stop.abort());
try {
  const config = readSfldConfig(values.config);
  await runSfld(config, {
    log,
    signal: stop.signal,
    onReady: (port) => console.log(JSON.stringify({ ready: true, port })),
  });
} catch (error) {
  console.error(`sfld: ${toSnowflockError(error).message}`);
  process.exitCode = 1;
}
