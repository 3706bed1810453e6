// The fuzz targets in C: built with clang's libFuzzer and sanitizers, which need no engine of ours.

import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync } from 'node:fs';
import { join } from 'node:path';

const ROOT = join(import.meta.dirname, '../..');
const AGENT = join(ROOT, 'guest/c');
const BUILD = join(ROOT, 'build/fuzz');
const BUILD_TIMEOUT_MS = 120_000;
/** libFuzzer's own grace at the end of its time. */
const EXTRA_MS = 60_000;

/** Builds and runs the agent's target; exit status as of `npm run fuzz`, 3 when clang or its runtime is missing. */
export function fuzzAgent({ seconds, seed }: { seconds: number; seed: number }): number {
  mkdirSync(join(BUILD, 'agent-corpus'), { recursive: true });
  const program = join(BUILD, 'agent');
  const sources = [join(AGENT, 'fuzz/frame_fuzz.c'), join(AGENT, 'agent/frame.c')];
  const flags = [
    '-g',
    '-O1',
    '-std=c11',
    '-Wall',
    '-Wextra',
    '-Werror',
    '-fsanitize=fuzzer,address,undefined',
  ];
  const built = spawnSync('clang', [...flags, '-fno-sanitize-recover=all', '-o', program, ...sources], {
    encoding: 'utf8',
    timeout: BUILD_TIMEOUT_MS,
  });
  if (built.error || /libclang_rt\.fuzzer/.test(built.stderr)) {
    console.error(
      'fuzz agent: needs clang with libFuzzer; on Debian: apt-get install clang libclang-rt-14-dev',
    );
    return 3;
  }
  if (built.status !== 0) {
    console.error(built.stderr);
    return 1;
  }
  const own = join(import.meta.dirname, 'corpus/agent');
  const run = spawnSync(
    program,
    [
      ...[
        `-max_total_time=${seconds}`,
        `-seed=${seed >>> 1 || 1}`,
        '-max_len=70000',
        '-timeout=10',
        '-print_final_stats=1',
      ],
      ...[`-artifact_prefix=${BUILD}/agent-`, join(BUILD, 'agent-corpus'), ...(existsSync(own) ? [own] : [])],
    ],
    { encoding: 'utf8', timeout: seconds * 1000 + EXTRA_MS },
  );
  const runs = /number_of_executed_units: (\d+)/.exec(run.stderr)?.[1] ?? '0';
  console.log(`fuzz agent: ${runs} runs in ${seconds} s, seed ${seed}`);
  if (run.status === 0) return 0;
  console.error(run.stderr.slice(-4000));
  console.error(
    `fuzz agent: FOUND a bug; the input is in ${BUILD}/agent-crash-...; once mended, put it into tools/fuzz/corpus/agent`,
  );
  return 1;
}
