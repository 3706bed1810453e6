// What a test needs of the machine: says why it is skipped, and fails instead where SNOWFLOCK_REQUIRE_VM=1.

import { spawnSync } from 'node:child_process';

/** True when all tools are there. */
export function haveTools(...tools: string[]): boolean {
  const missing = tools.filter((tool) => spawnSync('sh', ['-c', `command -v ${tool}`]).status !== 0);
  if (missing.length === 0) return true;
  const reason = `needs ${missing.join(', ')}, which this machine lacks`;
  if (process.env['SNOWFLOCK_REQUIRE_VM'] === '1') throw new Error(reason);
  console.warn(`skipped: ${reason}`);
  return false;
}
