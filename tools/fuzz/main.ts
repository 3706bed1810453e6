// npm run fuzz -- TARGET [--seconds N] [--seed S]: looks for inputs that a target cannot take.
//
// Exit status 0: none was found; 1: one was, made small and written to build/fuzz. Inputs worth running for ever are in
// tools/fuzz/corpus/TARGET; they are run first.

import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { Worker } from 'node:worker_threads';
import { fuzz, type Target } from './engine.ts';
import { fuzzAgent } from './native.ts';

const TARGETS = ['config', 'guest', 'page-wire', 'fuse', 'http'] as const;
const HERE = import.meta.dirname;
const FOUND = join(HERE, '../../build/fuzz');
const SECONDS_DEFAULT = 60;
const WATCHED_BYTES = 1 << 17;
/** No input takes a ms; this long means for ever. */
const HANG_MS = 10_000;

const { positionals, values } = parseArgs({
  allowPositionals: true,
  options: {
    seconds: { type: 'string', default: String(SECONDS_DEFAULT) },
    seed: { type: 'string' },
    /** Also write the inputs that executed something new to the corpus. */
    keep: { type: 'boolean', default: false },
  },
});
const name = TARGETS.find((each) => each === positionals[0]);
const seed = values.seed === undefined ? Math.floor(Math.random() * 2 ** 32) : Number(values.seed);
if (positionals[0] === 'agent') process.exit(fuzzAgent({ seconds: Number(values.seconds), seed }));
if (name === undefined) {
  console.error(`usage: npm run fuzz -- ${TARGETS.join('|')}|agent [--seconds N] [--seed S] [--keep]`);
  process.exit(2);
}
const { target } = (await import(`./targets/${name}.ts`)) as { target: Target };
const corpusDir = join(HERE, 'corpus', name);
const corpus = existsSync(corpusDir)
  ? readdirSync(corpusDir)
      .sort()
      .map((file) => readFileSync(join(corpusDir, file)))
  : [];

function save(directory: string, prefix: string, input: Buffer): string {
  mkdirSync(directory, { recursive: true });
  const file = join(directory, `${prefix}${createHash('sha256').update(input).digest('hex').slice(0, 12)}`);
  writeFileSync(file, input);
  return file;
}

// A thread of its own sees when this one is stuck, and has the input.
const watched = new SharedArrayBuffer(8 + WATCHED_BYTES);
const words = new Int32Array(watched, 0, 2);
const bytes = new Uint8Array(watched, 8);
mkdirSync(FOUND, { recursive: true });
const watchdog = new Worker(
  `const { workerData: { watched, file, hangMs } } = require('node:worker_threads');
   const words = new Int32Array(watched, 0, 2);
   let seen = -1, since = Date.now();
   setInterval(() => {
     if (words[0] !== seen) { seen = words[0]; since = Date.now(); return; }
     if (Date.now() - since < hangMs) return;
     require('node:fs').writeFileSync(file, new Uint8Array(watched, 8, words[1]));
     require('node:fs').writeSync(2, 'fuzz: an input takes for ever; it is in ' + file + '\\n');
     process.kill(process.pid, 'SIGKILL');
   }, 500);`,
  { eval: true, workerData: { watched, file: join(FOUND, `${name}-hang`), hangMs: HANG_MS } },
);
watchdog.unref();

const began = performance.now();
const { runs, coveredBytes, kept, crash } = await fuzz(target, {
  ...{ seconds: Number(values.seconds), seed, corpus },
  onRun(input) {
    const length = Math.min(input.length, WATCHED_BYTES);
    bytes.set(input.subarray(0, length));
    words[1] = length;
    words[0] = ((words[0] ?? 0) + 1) | 0;
  },
});
await watchdog.terminate();
await target.close?.();
const seconds = (performance.now() - began) / 1000;
console.log(
  `fuzz ${name}: ${runs} runs in ${seconds.toFixed(1)} s, ${coveredBytes} bytes of code executed, ` +
    `${kept.length} inputs found worth keeping, seed ${seed}`,
);
if (values.keep) for (const input of kept) save(corpusDir, '', input);
if (crash) {
  const file = save(FOUND, `${name}-`, crash.input);
  console.error(
    `fuzz ${name}: FOUND a bug; the input is in ${file}; once mended, put it into tools/fuzz/corpus/${name}`,
  );
  console.error(JSON.stringify(crash.input.toString('latin1').slice(0, 400)));
  console.error(crash.error);
  process.exitCode = 1;
}
