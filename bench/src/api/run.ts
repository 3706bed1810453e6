// npm run bench -- api: what the calls of the API cost. One case each, in a lab of its own; --only takes the beginning of a case's name, any
// number of times.

import { chooseAccel } from '@snowflock/vm';
import { machine, type BenchResult, type Figure } from '../figures.ts';
import { benchCheckpoint } from './checkpoint.ts';
import { benchForkOfClone } from './fork-of-clone.ts';
import { joinFigures } from './join.ts';
import { benchMigrate } from './migrate.ts';
import { benchReset } from './reset.ts';

const CASES: Readonly<
  Record<string, (options: { quick: boolean; signal: AbortSignal }) => Promise<Figure[]>>
> = {
  'fork-of-clone': benchForkOfClone,
  reset: benchReset,
  checkpoint: benchCheckpoint,
  join: joinFigures,
  migrate: benchMigrate,
};

export async function benchApi(options: {
  quick: boolean;
  only: readonly string[];
  signal: AbortSignal;
}): Promise<BenchResult> {
  const { only } = options;
  const wanted = Object.entries(CASES).filter(
    ([name]) => only.length === 0 || only.some((start) => name.startsWith(start)),
  );
  if (wanted.length === 0) throw new Error(`no case's name begins with '${only.join("' or '")}'`);
  const figures: Figure[] = [];
  for (const [, one] of wanted) figures.push(...(await one(options)));
  return { bench: 'api', machine: machine((await chooseAccel('auto')).chosen), figures };
}
