// The thin applier: runs `ip`, `bridge`, `tc` and `nft`, many commands at once on standard input, each run with a deadline.

import { spawn } from 'node:child_process';
import { SnowflockError } from '@snowflock/protocol';

/** A batch of a few hundred link commands takes well under a second; a kernel that holds RTNL longer is stuck. */
export const NETWORK_TOOL_TIMEOUT_MS = 15_000;
/** Deleting many links waits for RCU grace periods; still bounded. */
const OUTPUT_MAX_BYTES = 16 << 20;
const ERROR_TEXT_MAX = 2000;

export type NetworkTool = 'ip' | 'bridge' | 'tc' | 'nft';

export interface RunOptions {
  /** Name of a network namespace (`ip netns`) to act in; the caller's own when absent. */
  readonly netns?: string | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** `-n NETNS` is understood by ip, bridge and tc; nft has to be started inside. */
export function toolArgv(tool: NetworkTool, args: readonly string[], netns?: string): [string, ...string[]] {
  if (netns === undefined) return [tool, ...args];
  return tool === 'nft' ? ['ip', 'netns', 'exec', netns, 'nft', ...args] : [tool, '-n', netns, ...args];
}

interface ToolResult {
  readonly status: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

function runProcess(argv: [string, ...string[]], input: string, signal?: AbortSignal): Promise<ToolResult> {
  const [file, ...args] = argv;
  const deadline = AbortSignal.timeout(NETWORK_TOOL_TIMEOUT_MS);
  const child = spawn(file, args, {
    stdio: ['pipe', 'pipe', 'pipe'],
    signal: signal ? AbortSignal.any([signal, deadline]) : deadline,
    killSignal: 'SIGKILL',
  });
  return new Promise((resolve, reject) => {
    let stdout = '';
    let stderr = '';
    child.stdout.setEncoding('utf8').on('data', (text: string) => {
      stdout += text;
      if (stdout.length > OUTPUT_MAX_BYTES) child.kill('SIGKILL');
    });
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      if (stderr.length < ERROR_TEXT_MAX) stderr += text;
    });
    // The tool may stop reading at the first bad command; its exit status tells.
    child.stdin.on('error', () => undefined);
    child.stdin.end(input);
    child.on('error', (error: NodeJS.ErrnoException) => {
      if (error.code === 'ENOENT')
        reject(
          new SnowflockError('unavailable', `${file} is not installed; run npm run setup`, { cause: error }),
        );
      else if (deadline.aborted)
        reject(
          new SnowflockError('timeout', `${argv.join(' ')} took over ${NETWORK_TOOL_TIMEOUT_MS} ms`, {
            cause: error,
          }),
        );
      else reject(error);
    });
    child.on('close', (status) => resolve({ status, stdout, stderr }));
  });
}

function failure(argv: readonly string[], commands: readonly string[], result: ToolResult): SnowflockError {
  const text = result.stderr.trim() || `exit status ${result.status ?? 'by signal'}`;
  const line = /Command failed -:(\d+)/.exec(text)?.[1];
  const command = line === undefined ? undefined : commands[Number(line) - 1];
  const reason = text.split('\n')[0] ?? text;
  return new SnowflockError('internal', `${argv.join(' ')}: ${reason}${command ? ` (at '${command}')` : ''}`);
}

/**
 * Applies the commands in order with one process; stops at the first that fails.
 * With `force`, goes on after failures and never throws for them: for removals.
 */
export async function runBatch(
  tool: 'ip' | 'bridge' | 'tc',
  commands: readonly string[],
  options: RunOptions & { readonly force?: boolean } = {},
): Promise<void> {
  if (commands.length === 0) return;
  const args = options.force ? ['-force', '-batch', '-'] : ['-batch', '-'];
  const argv = toolArgv(tool, args, options.netns);
  const result = await runProcess(argv, commands.join('\n') + '\n', options.signal);
  if (result.status !== 0 && !options.force) throw failure(argv, commands, result);
}

/** Runs one command and gives its output; throws when it fails. */
export async function runTool(
  tool: NetworkTool,
  args: readonly string[],
  options: RunOptions & { readonly input?: string } = {},
): Promise<string> {
  const argv = toolArgv(tool, args, options.netns);
  const result = await runProcess(argv, options.input ?? '', options.signal);
  if (result.status !== 0) throw failure(argv, [], result);
  return result.stdout;
}

/** Names of all devices of the namespace. */
export async function listLinks(options: RunOptions = {}): Promise<string[]> {
  const text = await runTool('ip', ['-j', 'link', 'show'], options);
  const links: unknown = JSON.parse(text.trim() || '[]');
  if (!Array.isArray(links)) return [];
  return (links as unknown[]).flatMap((link) => {
    const name =
      typeof link === 'object' && link !== null ? (link as { ifname?: unknown }).ifname : undefined;
    return typeof name === 'string' ? [name] : [];
  });
}
