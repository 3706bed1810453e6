// The far end of narrow-link.ts, in its namespace: a memtap, and a program that reads its RAM file. Prints a ReaderResult.

import { execFile } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { promisify } from 'node:util';
import type { ReaderResult, ReaderTask } from './narrow-link.ts';
import { Harness } from './vm-harness.ts';

const task = JSON.parse(process.argv[2] ?? '') as ReaderTask;
await using harness = new Harness();
const memtap = await harness.memtap({ pages: task.pages, compress: task.compress });
await memtap.attach({
  sources: [task.source],
  key: Buffer.from(task.keyHex, 'hex'),
  presence: readFileSync(task.presencePath),
});
const [program = '', ...args] = task.command.map((word) => (word === 'RAM' ? memtap.ramPath : word));
const begin = performance.now();
const { stdout } = await promisify(execFile)(program, args);
const result: ReaderResult = {
  output: stdout.replace(memtap.ramPath, ''),
  ms: performance.now() - begin,
  stats: await memtap.stats(),
};
console.log(JSON.stringify(result));
