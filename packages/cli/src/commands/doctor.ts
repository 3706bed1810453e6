// snowflock doctor: is this machine fit for SnowFlock, and what to do if not.

import { Command } from 'commander';
import { SOCKET_OPTION } from '../sfld-socket.ts';
import { checkService, CONFIG_DIR } from './doctor-service.ts';
import { ExitStatus, EXIT_FAILURE } from '../failure.ts';
import { CHECKS, type Check, type CheckResult } from './doctor-checks.ts';

export async function runChecks(checks: readonly Check[]): Promise<CheckResult[]> {
  return Promise.all(
    checks.map(async ({ name, run }) => {
      try {
        return { name, ...(await run()) };
      } catch (error) {
        const found = error instanceof Error ? error.message : String(error);
        return { name, status: 'fail' as const, found, advice: 'this check itself failed' };
      }
    }),
  );
}

export function formatChecks(results: readonly CheckResult[]): string {
  const width = Math.max(...results.map(({ name }) => name.length));
  const lines = results.flatMap(({ name, status, found, advice }) => [
    `${status.padEnd(4)}  ${name.padEnd(width)}  ${found}`,
    ...(advice === '' ? [] : [`${' '.repeat(6 + width + 2)}→ ${advice}`]),
  ]);
  const count = (status: string): number => results.filter((result) => result.status === status).length;
  const verdict =
    count('fail') > 0
      ? `${count('fail')} failed: SnowFlock cannot run here yet`
      : count('warn') > 0
        ? `fit to run SnowFlock, with ${count('warn')} remark${count('warn') === 1 ? '' : 's'}`
        : 'fit to run SnowFlock';
  return [...lines, '', verdict, ''].join('\n');
}

export function doctorCommand(): Command {
  return new Command('doctor')
    .summary('check this machine')
    .description(
      'Checks what SnowFlock needs of this machine, and where it is configured or runs, the service: configuration, ' +
        'certificates, clocks, and every pair of hosts on every port. Says what to do. Exit status 1 when something is wrong.',
    )
    .option('--config-dir <dir>', 'where sfld.cfg and sfmd.cfg are', CONFIG_DIR)
    .option(...SOCKET_OPTION)
    .option('--json', 'print a JSON object')
    .action(async (options: { json?: boolean; configDir: string; socket?: string }) => {
      const results = [...(await runChecks(CHECKS)), ...(await checkService(options))];
      const ok = results.every(({ status }) => status !== 'fail');
      process.stdout.write(
        options.json ? `${JSON.stringify({ ok, checks: results })}\n` : formatChecks(results),
      );
      if (!ok) throw new ExitStatus(EXIT_FAILURE);
    });
}
