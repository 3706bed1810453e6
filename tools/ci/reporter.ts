// A reporter of vitest for .ci/run: writes a Report, as JSON, to the file that SNOWFLOCK_CI_REPORT names.

import { writeFileSync } from 'node:fs';
import { relative } from 'node:path';

import type { Reporter, TestModule, TestRunEndReason } from 'vitest/node';

import type { FileReport, Report } from './report.ts';

type Failure = Parameters<NonNullable<Reporter['onTestRunEnd']>>[1][number];

const firstLine = (error: Failure): string => error.message.split('\n', 1)[0] ?? '';

function addModule(file: FileReport, module: TestModule): void {
  for (const test of module.children.allTests()) {
    const result = test.result();
    if (result.state === 'passed') file.passed++;
    if (result.state !== 'failed') continue;
    file.failed++;
    file.why.push(`${test.fullName}: ${result.errors.map(firstLine).join('; ')}`);
  }
  if (file.failed > 0 || module.ok()) return;
  file.failed++;
  const outside = [module, ...module.children.allSuites()].flatMap((place) => place.errors());
  file.why.push(`outside its tests: ${outside.map(firstLine).join('; ')}`);
}

export default class CiReporter implements Reporter {
  onTestRunEnd(
    modules: readonly TestModule[],
    unhandled: readonly Failure[],
    reason: TestRunEndReason,
  ): void {
    const report: Report = { files: {} };
    const at = (path: string): FileReport =>
      (report.files[path && relative(process.cwd(), path)] ??= {
        passed: 0,
        failed: 0,
        why: [],
      });
    for (const module of modules) addModule(at(module.moduleId), module);
    for (const error of unhandled) {
      const path: unknown = error['VITEST_TEST_PATH'];
      const file = at(typeof path === 'string' ? path : '');
      file.failed++;
      file.why.push(`an error that nobody caught: ${firstLine(error)}`);
    }
    if (reason === 'interrupted') at('').failed++;
    const path = process.env.SNOWFLOCK_CI_REPORT;
    if (path === undefined) throw new Error('SNOWFLOCK_CI_REPORT names no file for the report');
    writeFileSync(path, JSON.stringify(report, null, 1));
  }
}
