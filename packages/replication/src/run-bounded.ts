// Runs a command to its end or its deadline.

import { spawn } from 'node:child_process';

export interface CommandOutcome {
  /** null: killed at its deadline, or never started. */
  readonly code: number | null;
  readonly stderr: string;
}

export async function runBounded(
  command: string,
  args: readonly string[],
  options: { readonly timeoutMs: number },
): Promise<CommandOutcome> {
  const child = spawn(command, args, { stdio: ['ignore', 'ignore', 'pipe'] });
  let stderr = '';
  child.stderr.on('data', (chunk: Buffer) => (stderr += chunk.toString('utf8')));
  return new Promise((resolve) => {
    // not waited for after the deadline: a command stuck in the kernel does not die of SIGKILL either
    const timer = setTimeout(() => {
      child.kill('SIGKILL');
      child.unref();
      resolve({ code: null, stderr: `${command} did not end within ${options.timeoutMs} ms` });
    }, options.timeoutMs);
    const end = (outcome: CommandOutcome): void => {
      clearTimeout(timer);
      resolve(outcome);
    };
    child.on('error', (error) => end({ code: null, stderr: error.message }));
    child.on('close', (code) => end({ code, stderr: stderr.trim() }));
  });
}
