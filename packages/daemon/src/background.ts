// start, stop and status of either daemon (manual section 4): the daemon seen from outside.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdir, open } from 'node:fs/promises';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import { ControlClient, SnowflockError, toSnowflockError } from '@snowflock/protocol';
import type { DaemonConfig, DaemonProgram } from './daemon-program.ts';
import { alreadyRunning, isDaemon, runningPid, type DaemonPlace } from './pid-file.ts';

const KILL_TIMEOUT_MS = 2000;
const POLL_MS = 20;

/** Starts `run ARGS` in the background and waits until it listens. Returns what to tell the person. */
export async function start<C extends DaemonConfig>(
  program: DaemonProgram<C>,
  config: C,
  args: readonly string[],
): Promise<string> {
  const { name, readyTimeoutMs } = program;
  const place = { name, runDir: config.runDir };
  const running = await runningPid(place);
  if (running !== null) throw alreadyRunning(place, running);
  await mkdir(config.stateDir, { recursive: true, mode: 0o700 });
  const logFile = join(config.stateDir, `${name}.log`);
  const log = await open(logFile, 'a', 0o600);
  const child = spawn(process.execPath, [program.main, 'run', ...args], {
    detached: true,
    stdio: ['ignore', 'pipe', log.fd],
  });
  await log.close();
  const { stdout } = child;
  if (stdout === null) throw new Error('the daemon has no standard output');
  const late = AbortSignal.timeout(readyTimeoutMs);
  try {
    const lines = createInterface({ input: stdout });
    const ready = once(lines, 'line', { signal: late }).then(
      ([line]) => JSON.parse(String(line)) as { port: number },
    );
    const died = once(child, 'exit', { signal: late }).then(([code, signal]) => {
      throw new SnowflockError(
        'unavailable',
        `${name} ended with ${String(code ?? signal)} before it was ready; see ${logFile}`,
      );
    });
    const { port } = await Promise.race([ready, died]);
    // The loser of the race must not become an unhandled rejection.
    for (const loser of [ready, died]) loser.catch(() => undefined);
    lines.close();
    return `${name} is running (pid ${child.pid ?? 0}, port ${port}); its log is ${logFile}`;
  } catch (error) {
    child.kill('SIGKILL');
    if (!late.aborted) throw error;
    throw new SnowflockError('timeout', `${name} was not ready within ${readyTimeoutMs} ms; see ${logFile}`, {
      cause: error,
    });
  } finally {
    stdout.destroy();
    child.unref();
  }
}

/** Ends the daemon; with `vms` what would run on without it first. Returns what to tell the person. */
export async function stop<C extends DaemonConfig>(
  program: DaemonProgram<C>,
  config: C,
  { vms }: { readonly vms: boolean },
): Promise<string> {
  const { name, stopTimeoutMs } = program;
  const pid = await runningPid({ name, runDir: config.runDir });
  if (pid === null && vms)
    throw new SnowflockError(
      'unavailable',
      `${name} is not running, so it cannot end its VMs; start it, then stop it with --vms`,
    );
  if (pid === null) return `${name} is not running`;
  if (vms) {
    using client = new ControlClient({ socketPath: join(config.runDir, `${name}.sock`) });
    await program.endVms?.(client);
  }
  process.kill(pid, 'SIGTERM');
  if (await isGone(name, pid, stopTimeoutMs)) return `${name} has stopped`;
  process.kill(pid, 'SIGKILL');
  if (await isGone(name, pid, KILL_TIMEOUT_MS))
    return `${name} did not stop within ${stopTimeoutMs} ms and was killed`;
  throw new SnowflockError('timeout', `${name} (pid ${pid}) does not die`);
}

async function isGone(name: DaemonPlace['name'], pid: number, timeoutMs: number): Promise<boolean> {
  const until = performance.now() + timeoutMs;
  while (performance.now() < until) {
    if (!(await isDaemon(name, pid))) return true;
    await sleep(POLL_MS);
  }
  return false;
}

export type DaemonState = 'running' | 'silent' | 'not-running';

/** 'silent': there is such a process, but it does not answer (yet, or any more). */
export async function status<C extends DaemonConfig>(
  program: DaemonProgram<C>,
  config: C,
): Promise<{ state: DaemonState; text: string }> {
  const { name } = program;
  const pid = await runningPid({ name, runDir: config.runDir });
  if (pid === null) return { state: 'not-running', text: `${name} is not running` };
  using client = new ControlClient({ socketPath: join(config.runDir, `${name}.sock`) });
  try {
    const text = await program.describe(client);
    return { state: 'running', text: `${name} is running (pid ${pid}): ${text}` };
  } catch (error) {
    const reason = toSnowflockError(error).message;
    return { state: 'silent', text: `${name} is starting, stopping or stuck (pid ${pid}): ${reason}` };
  }
}
