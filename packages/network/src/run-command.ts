// Runs a command to its end, with a deadline and a cap on what it may print.

import { spawn } from 'node:child_process';
import { SnowflockError } from '@snowflock/protocol';

export const COMMAND_TIMEOUT_MS = 60_000;
const OUTPUT_MAX_BYTES = 32 << 20;

export interface CommandResult {
  /** Exit status; 128 + signal number is not used: a signal gives null. */
  readonly status: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

export interface CommandOptions {
  readonly input?: string | Buffer | undefined;
  readonly timeoutMs?: number | undefined;
  readonly env?: NodeJS.ProcessEnv | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** Resolves with any exit status; throws when the command cannot be started, is aborted or takes too long. */
export function runCommand(argv: readonly string[], options: CommandOptions = {}): Promise<CommandResult> {
  const [file, ...args] = argv;
  if (file === undefined) throw new SnowflockError('bad-request', 'no command given');
  const timeoutMs = options.timeoutMs ?? COMMAND_TIMEOUT_MS;
  const deadline = AbortSignal.timeout(timeoutMs);
  const child = spawn(file, args, {
    stdio: ['pipe', 'pipe', 'pipe'],
    signal: options.signal ? AbortSignal.any([options.signal, deadline]) : deadline,
    killSignal: 'SIGKILL',
    ...(options.env ? { env: options.env } : {}),
  });
  return new Promise((resolve, reject) => {
    const output = { stdout: '', stderr: '' };
    const fail = (code: 'timeout' | 'unavailable' | 'interrupted', why: string, cause: Error): void =>
      reject(new SnowflockError(code, `${argv.join(' ')}: ${why}`, { cause }));
    for (const stream of ['stdout', 'stderr'] as const)
      child[stream].setEncoding('utf8').on('data', (text: string) => {
        output[stream] += text;
        if (output[stream].length > OUTPUT_MAX_BYTES) child.kill('SIGKILL');
      });
    child.stdin.on('error', () => undefined); // it may not want input; its exit status tells
    child.stdin.end(options.input ?? '');
    child.on('error', (error: NodeJS.ErrnoException) => {
      if (error.code === 'ENOENT') fail('unavailable', 'not installed; run npm run setup', error);
      else if (deadline.aborted) fail('timeout', `not finished after ${timeoutMs} ms`, error);
      else if (options.signal?.aborted) fail('interrupted', 'cancelled', error);
      else fail('unavailable', error.message, error);
    });
    child.on('close', (status) => resolve({ status, ...output }));
  });
}

/** The same, for commands that are expected to succeed; gives standard output. */
export async function runChecked(argv: readonly string[], options: CommandOptions = {}): Promise<string> {
  const result = await runCommand(argv, options);
  if (result.status === 0) return result.stdout;
  const reason = result.stderr.trim().split('\n').slice(-3).join('; ');
  throw new SnowflockError(
    'internal',
    `${argv.join(' ')}: exit status ${result.status ?? 'by signal'}: ${reason}`,
  );
}
