// npm run test:chaos -- [--seed S] [--minutes M]: the chaos test for as long as asked, with a seed of one's own or a random one.

import { spawn } from 'node:child_process';
import { randomInt } from 'node:crypto';
import { join } from 'node:path';
import { parseArgs } from 'node:util';

const USAGE = 'usage: npm run test:chaos -- [--seed S] [--minutes M]   (whole seed from 0, minutes above 0)';

function main(): void {
  const { values } = parseArgs({
    options: { seed: { type: 'string' }, minutes: { type: 'string', default: '10' } },
  });
  const seed = values.seed === undefined ? randomInt(2 ** 31) : Number(values.seed);
  const minutes = Number(values.minutes);
  if (!Number.isInteger(seed) || seed < 0 || !(minutes > 0)) throw new TypeError(USAGE);
  console.log(`chaos: seed ${seed}, ${minutes} min; the same schedule again: --seed ${seed}`);
  const root = join(import.meta.dirname, '../..');
  const vitest = join(root, 'node_modules/vitest/vitest.mjs');
  const args = [vitest, 'run', '--project', 'vm', '--disableConsoleIntercept=true', 'tests/chaos.vm.test.ts'];
  const env = {
    ...process.env,
    SNOWFLOCK_REQUIRE_VM: '1',
    SNOWFLOCK_CHAOS_SEED: String(seed),
    SNOWFLOCK_CHAOS_MINUTES: String(minutes),
  };
  const child = spawn(process.execPath, args, { cwd: root, env, stdio: 'inherit' });
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.on(signal, () => child.kill(signal));
  child.on('close', (code) => (process.exitCode = code ?? 1));
}

try {
  main();
} catch (error) {
  console.error(error instanceof Error ? error.message : error);
  process.exitCode = 2;
}
