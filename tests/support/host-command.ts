// The host's commands as people start them, through bin/.

import { spawn } from 'node:child_process';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { within } from './deadline.ts';

const BIN = join(import.meta.dirname, '../../bin');
const COMMAND_MS = 90_000;

export interface CommandOutcome {
  readonly status: number | null;
  readonly out: string;
  readonly err: string;
  readonly ms: number;
}

export async function hostCommand(
  command: string,
  args: readonly string[],
  options: {
    readonly input?: string | Buffer;
    readonly env?: Readonly<Record<string, string | undefined>>;
    readonly deadlineMs?: number;
    /** Put before the command: `unshare -m ...`. */
    readonly prefix?: readonly string[];
  } = {},
): Promise<CommandOutcome> {
  const { input = '', env, deadlineMs = COMMAND_MS, prefix = [] } = options;
  const begin = performance.now();
  const [file = '', ...rest] = [...prefix, join(BIN, command), ...args];
  const child = spawn(file, rest, { env: { ...process.env, ...env } });
  child.stdin.on('error', () => undefined); // it need not read what it is given
  child.stdin.end(input);
  const status = new Promise<number | null>((resolve, reject) => {
    child.once('error', reject);
    child.once('close', resolve);
  });
  try {
    const all = Promise.all([status, text(child.stdout), text(child.stderr)]);
    const [code, out, err] = await within(deadlineMs, `${command} ${args.join(' ')}`, all);
    return { status: code, out, err, ms: performance.now() - begin };
  } finally {
    child.kill('SIGKILL');
  }
}
