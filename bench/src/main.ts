// npm run bench -- NAME [--quick] [--only PART ...] [--json]
// Prints a table, and one JSON object as its last line (with --json only that line goes to stdout).

import { parseArgs } from 'node:util';
import { printTable, type BenchResult } from './figures.ts';
import { benchApi } from './api/run.ts';
import { benchDistribution } from './distribution/run.ts';
import { benchFork } from './fork/run.ts';
import { benchEndurance } from './scale/endurance.ts';
import { benchMpi } from './mpi/run.ts';
import { benchNetwork } from './network/run.ts';
import { benchScale } from './scale/run.ts';
import { benchSfmd } from './sfmd/run.ts';

interface BenchOptions {
  readonly quick: boolean;
  /** Only the parts whose names begin with one of these; none: all. For benches that have parts. */
  readonly only: readonly string[];
  readonly signal: AbortSignal;
}

const BENCHES: Record<string, (options: BenchOptions) => Promise<BenchResult>> = {
  fork: benchFork,
  distribution: benchDistribution,
  api: benchApi,
  mpi: benchMpi,
  network: benchNetwork,
  scale: benchScale,
  endurance: benchEndurance,
  sfmd: benchSfmd,
};

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    quick: { type: 'boolean', default: false },
    only: { type: 'string', multiple: true, default: [] },
    json: { type: 'boolean', default: false },
  },
});
const bench = BENCHES[positionals[0] ?? ''];
if (!bench || positionals.length !== 1) {
  console.error(
    `usage: npm run bench -- ${Object.keys(BENCHES).join('|')} [--quick] [--only PART ...] [--json]`,
  );
  process.exit(2);
}
const interrupted = new AbortController();
for (const name of ['SIGINT', 'SIGTERM'] as const)
  process.once(name, () => interrupted.abort(new Error(`interrupted by ${name}`)));
try {
  const result = await bench({ quick: values.quick, only: values.only, signal: interrupted.signal });
  if (!values.json) printTable(result.figures);
  console.log(JSON.stringify(result));
} catch (error) {
  console.error(`bench: ${error instanceof Error ? error.message : String(error)}`);
  process.exitCode = 1;
}
