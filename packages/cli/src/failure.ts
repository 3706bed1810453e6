// How every command ends: exit status 0; 1 with one clear line on standard error; 2 for wrong usage.

import { CommanderError, type Command } from 'commander';
import { toSnowflockError } from '@snowflock/protocol';

export const EXIT_FAILURE = 1;
export const EXIT_USAGE = 2;

/** A command that did its work, whose exit status says more than ok: that of the command in the guest, or of a check. */
export class ExitStatus extends Error {
  readonly status: number;

  constructor(status: number) {
    super(`exit status ${status}`);
    this.name = 'ExitStatus';
    this.status = status;
  }
}

/** Parses and runs; resolves with the exit status. */
export async function runProgram(program: Command, args: readonly string[]): Promise<number> {
  const outputError = (text: string, write: (text: string) => void): void =>
    write(`${program.name()}: ${text.replace(/^error: /, '').trimEnd()} (--help shows how it is used)
`);
  for (const command of allCommands(program)) command.exitOverride().configureOutput({ outputError });
  try {
    await program.parseAsync([...args], { from: 'user' });
    return 0;
  } catch (error) {
    if (error instanceof ExitStatus) return error.status;
    if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : EXIT_USAGE;
    process.stderr.write(`${program.name()}: ${toSnowflockError(error).message}\n`);
    if (process.env.SNOWFLOCK_DEBUG) console.error(error);
    return EXIT_FAILURE;
  }
}

function allCommands(command: Command): Command[] {
  return [command, ...command.commands.flatMap(allCommands)];
}

/** For the entry points: standard output may be a pipe that takes a while, so never process.exit() at once. */
export async function runMain(program: Command): Promise<void> {
  process.stdout.on('error', (error: NodeJS.ErrnoException) => {
    // `sfstate | head`: the reader has seen enough.
    if (error.code === 'EPIPE') process.exit(0);
    throw error;
  });
  process.exitCode = await runProgram(program, process.argv.slice(2));
}

/** Aborts on Ctrl-C, SIGTERM and SIGHUP, so that what was begun is rolled back. */
export function interruptSignal(): AbortSignal {
  const abort = new AbortController();
  for (const name of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const)
    process.once(name, () => abort.abort(new Error(`interrupted by ${name}`)));
  return abort.signal;
}
