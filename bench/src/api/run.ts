// npm run bench -- api: what the calls of the API cost. One case each, in a lab of its own.

import { chooseAccel } from '@snowflock/vm';
import { machine, type BenchResult, type Figure } from '../figures.ts';
import { benchCheckpoint } from './checkpoint.ts';
import { benchForkOfClone } from './fork-of-clone.ts';
import { joinFigures } from './join.ts';
import { benchMigrate } from './migrate.ts';
import { benchReset } from './reset.ts';

const CASES: readonly ((options: { quick: boolean; signal: AbortSignal }) => Promise<Figure[]>)[] = [
  benchForkOfClone,
  benchReset,
  benchCheckpoint,
  joinFigures,
  benchMigrate,
];

export async function benchApi(options: { quick: boolean; signal: AbortSignal }): Promise<BenchResult> {
  const figures: Figure[] = [];
  for (const one of CASES) figures.push(...(await one(options)));
  return { bench: 'api', machine: machine((await chooseAccel('auto')).chosen), figures };
}
