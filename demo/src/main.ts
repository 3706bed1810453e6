// npm run demo [-- --json]

import { parseArgs } from 'node:util';
import { toSnowflockError } from '@snowflock/protocol';
import { describeResult, toResult } from './result.ts';
import { runDemo } from './run.ts';

const { values } = parseArgs({ options: { json: { type: 'boolean', default: false } } });
const interrupted = new AbortController();
for (const name of ['SIGINT', 'SIGTERM'] as const)
  process.once(name, () => interrupted.abort(new Error(`interrupted by ${name}`)));
try {
  const found = await runDemo({ signal: interrupted.signal });
  console.log(describeResult(found));
  const result = toResult(found);
  if (values.json) console.log(JSON.stringify(result));
  process.exitCode = result.ok ? 0 : 1;
} catch (error) {
  console.error(`demo: ${toSnowflockError(error).message}`);
  if (values.json) console.log(JSON.stringify({ ok: false, error: toSnowflockError(error).message }));
  process.exitCode = 1;
}
