// The loop: change an input that was worth keeping, run it, keep it when it executed something new.
//
// Inputs are run in batches and coverage is looked at once a batch (it costs a ms); a batch that found something is run
// again one by one to learn which input it was.

import { Coverage } from './coverage.ts';
import { mutate, seededRandom } from './mutate.ts';

export interface Target {
  readonly name: string;
  /** Throws (or rejects) only for what is a bug. */
  readonly run: (input: Buffer) => void | Promise<void>;
  /** To begin with, besides the corpus. */
  readonly seeds: readonly (string | Buffer)[];
  /** Words that mean something to what is tested. */
  readonly dictionary: readonly (string | Buffer)[];
  readonly maxBytes?: number;
  readonly close?: () => void | Promise<void>;
}

export interface FuzzResult {
  readonly runs: number;
  readonly coveredBytes: number;
  readonly kept: readonly Buffer[];
  readonly crash: { readonly input: Buffer; readonly error: unknown } | null;
}

const BATCH = 64;
const MAX_BYTES_DEFAULT = 4096;
const MINIMISE_RUNS_MAX = 400;

export async function fuzz(
  target: Target,
  options: {
    readonly seconds: number;
    readonly seed: number;
    readonly corpus: readonly Buffer[];
    /** Told before each run. */
    readonly onRun: (input: Buffer) => void;
  },
): Promise<FuzzResult> {
  const { seconds, seed, onRun } = options;
  const random = seededRandom(seed);
  const dictionary = target.dictionary.map((word) => Buffer.from(word as string));
  const maxBytes = target.maxBytes ?? MAX_BYTES_DEFAULT;
  const begun = [
    ...options.corpus,
    ...target.seeds.map((text) => Buffer.from(text as string)),
    Buffer.alloc(0),
  ];
  const kept: Buffer[] = [];
  const coverage = new Coverage();
  let runs = 0;
  const run = async (input: Buffer): Promise<void> => {
    runs++;
    onRun(input);
    await target.run(Buffer.from(input));
  };
  const until = performance.now() + seconds * 1000;
  let input: Buffer = Buffer.alloc(0);
  const result = (crash: FuzzResult['crash']): FuzzResult => ({
    runs,
    coveredBytes: coverage.bytes,
    kept,
    crash,
  });
  try {
    for (input of begun) await run(input);
    coverage.newBytes({ remember: true });
    const sources = [...begun];
    while (performance.now() < until) {
      const batch = Array.from({ length: BATCH }, () => {
        const source = sources[Math.floor(random() * sources.length)] ?? Buffer.alloc(0);
        return mutate(source, { random, dictionary, corpus: sources, maxBytes });
      });
      for (input of batch) await run(input);
      if (coverage.newBytes({ remember: false }) === 0) continue;
      for (input of batch) {
        await run(input);
        if (coverage.newBytes({ remember: true }) === 0) continue;
        kept.push(input);
        sources.push(input);
      }
    }
    return result(null);
  } catch (error) {
    return result({ input: await minimise(input, target), error });
  } finally {
    coverage.close();
  }
}

/** A smaller input that fails too. */
async function minimise(input: Buffer, target: Target): Promise<Buffer> {
  let smallest = input;
  let runs = 0;
  for (let size = Math.ceil(input.length / 2); size >= 1; size = Math.floor(size / 2))
    for (let at = 0; at < smallest.length && runs < MINIMISE_RUNS_MAX; runs++) {
      const less = Buffer.concat([smallest.subarray(0, at), smallest.subarray(at + size)]);
      try {
        await target.run(Buffer.from(less));
        at += size;
      } catch {
        smallest = less;
      }
    }
  return smallest;
}
