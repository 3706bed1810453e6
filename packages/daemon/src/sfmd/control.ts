// sfmd start, stop and status (manual section 4): the daemon seen from outside.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdir, open } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import { ControlClient, SnowflockError, SystemState, type SfmdConfig } from '@snowflock/protocol';
import { isSfmd, pidFile, runningPid } from './pid-file.ts';
import { SFMD_SOCKET } from './run.ts';

/** Starting takes under a second; a loaded machine may need several. */
const READY_TIMEOUT_MS = 20_000;
/** The daemon closes its listeners within 2 s of SIGTERM. */
const TERM_TIMEOUT_MS = 8000;
const KILL_TIMEOUT_MS = 2000;
const STATUS_TIMEOUT_MS = 5000;
const POLL_MS = 20;

/** Starts sfmd in the background and waits until it listens. Returns what to tell the person. */
export async function start(
  config: SfmdConfig,
  options: { main: string; configFile: string },
): Promise<string> {
  const running = await runningPid(pidFile(config.runDir));
  if (running !== null) throw new SnowflockError('unavailable', `sfmd is running already (pid ${running})`);
  await mkdir(config.stateDir, { recursive: true, mode: 0o700 });
  const logFile = join(config.stateDir, 'sfmd.log');
  const log = await open(logFile, 'a', 0o600);
  const child = spawn(process.execPath, [options.main, 'run', '--config', resolve(options.configFile)], {
    cwd: '/',
    detached: true,
    stdio: ['ignore', 'pipe', log.fd],
  });
  await log.close();
  const { stdout } = child;
  if (stdout === null) throw new Error('the daemon has no standard output');
  const late = AbortSignal.timeout(READY_TIMEOUT_MS);
  try {
    const lines = createInterface({ input: stdout });
    const ready = once(lines, 'line', { signal: late }).then(
      ([line]) => JSON.parse(String(line)) as { port: number },
    );
    const died = once(child, 'exit', { signal: late }).then(([code, signal]) => {
      throw new SnowflockError(
        'unavailable',
        `sfmd ended with ${String(code ?? signal)} before it was ready; see ${logFile}`,
      );
    });
    const { port } = await Promise.race([ready, died]);
    // The loser of the race must not become an unhandled rejection.
    for (const loser of [ready, died]) loser.catch(() => undefined);
    lines.close();
    return `sfmd is running (pid ${child.pid ?? 0}, port ${port}); its log is ${logFile}`;
  } catch (error) {
    child.kill('SIGKILL');
    if (!late.aborted) throw error;
    throw new SnowflockError('timeout', `sfmd was not ready within ${READY_TIMEOUT_MS} ms; see ${logFile}`, {
      cause: error,
    });
  } finally {
    stdout.destroy();
    child.unref();
  }
}

/** Ends sfmd; VMs run on. */
export async function stop(config: SfmdConfig): Promise<string> {
  const pid = await runningPid(pidFile(config.runDir));
  if (pid === null) return 'sfmd is not running';
  process.kill(pid, 'SIGTERM');
  if (await isGone(pid, TERM_TIMEOUT_MS)) return 'sfmd has stopped';
  process.kill(pid, 'SIGKILL');
  if (await isGone(pid, KILL_TIMEOUT_MS))
    return `sfmd did not stop within ${TERM_TIMEOUT_MS} ms and was killed`;
  throw new SnowflockError('timeout', `sfmd (pid ${pid}) does not die`);
}

async function isGone(pid: number, timeoutMs: number): Promise<boolean> {
  const until = performance.now() + timeoutMs;
  while (performance.now() < until) {
    if (!(await isSfmd(pid))) return true;
    await sleep(POLL_MS);
  }
  return false;
}

export async function status(config: SfmdConfig): Promise<{ running: boolean; text: string }> {
  const pid = await runningPid(pidFile(config.runDir));
  if (pid === null) return { running: false, text: 'sfmd is not running' };
  using client = new ControlClient({ socketPath: join(config.runDir, SFMD_SOCKET) });
  const state = await client.request({
    method: 'GET',
    path: '/v1/state',
    reply: SystemState,
    timeoutMs: STATUS_TIMEOUT_MS,
  });
  const up = state.hosts.filter((host) => host.up).length;
  return {
    running: true,
    text: `sfmd is running (pid ${pid}): ${up} of ${state.hosts.length} hosts up, ${state.clusters.length} clusters`,
  };
}
