// The thin applier: runs `ip`, `bridge`, `tc` and `nft`, many commands at once on standard input, each run with a deadline.

import { SnowflockError } from '@snowflock/protocol';
import { runCommand, type CommandResult } from './run-command.ts';

/** A batch of a few hundred link commands takes well under a second; a kernel that holds RTNL longer is stuck. */
export const NETWORK_TOOL_TIMEOUT_MS = 15_000;

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

function apply(argv: readonly string[], input: string, signal?: AbortSignal): Promise<CommandResult> {
  return runCommand(argv, { input, timeoutMs: NETWORK_TOOL_TIMEOUT_MS, signal });
}

function failure(
  argv: readonly string[],
  commands: readonly string[],
  result: CommandResult,
): SnowflockError {
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
  const result = await apply(argv, commands.join('\n') + '\n', options.signal);
  if (result.status !== 0 && !options.force) throw failure(argv, commands, result);
}

/** Runs one command and gives its output; throws when it fails. */
export async function runTool(
  tool: NetworkTool,
  args: readonly string[],
  options: RunOptions & { readonly input?: string } = {},
): Promise<string> {
  const argv = toolArgv(tool, args, options.netns);
  const result = await apply(argv, options.input ?? '', options.signal);
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
