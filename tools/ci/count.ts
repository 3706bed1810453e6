// count again REPORT: the files that failed, a line each, when they are so few that a busy machine may have done it.
// count sum REPORT [SECOND]: 'PASSED FAILED'; what SECOND says of a file takes the place of what REPORT says. Why, on stderr.

import { existsSync, readFileSync } from 'node:fs';

import type { FileReport, Report } from './report.ts';

const FEW = 4;

const read = (path: string): Report['files'] => (JSON.parse(readFileSync(path, 'utf8')) as Report).files;
const failures = (files: Report['files']): [string, FileReport][] =>
  Object.entries(files).filter(([, file]) => file.failed > 0);

function again(path: string): string[] {
  const failed = failures(read(path));
  return failed.length <= FEW && failed.every(([name]) => name !== '') ? failed.map(([name]) => name) : [];
}

function sum(first: string, second: string | undefined): { passed: number; failed: number } {
  const files = read(first);
  if (second !== undefined && existsSync(second)) {
    for (const [name, file] of Object.entries(read(second))) {
      const before = files[name];
      if (before && file.failed === 0)
        console.error(`ci: ${name} failed once, and passed alone: ${before.why.join('; ')}`);
      files[name] = file;
    }
  }
  for (const [name, file] of failures(files))
    console.error(`ci: ${name || 'vitest'} failed: ${file.why.join('; ')}`);
  const all = Object.values(files);
  return {
    passed: all.reduce((n, file) => n + file.passed, 0),
    failed: all.reduce((n, file) => n + file.failed, 0),
  };
}

const [what, first, second] = process.argv.slice(2);
if (first === undefined || (what !== 'again' && what !== 'sum')) {
  console.error('usage: count again REPORT | sum REPORT [SECOND]');
  process.exit(2);
}
if (what === 'again') for (const name of again(first)) console.log(name);
else {
  const { passed, failed } = sum(first, second);
  console.log(passed, failed);
}
