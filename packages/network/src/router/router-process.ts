// sfld's end of a router: started or found again, told its settings, ended. It outlives the sfld that started it.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, openSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { SnowflockError, type RouterSettings } from '@snowflock/protocol';
import { removeLinkCommand } from '../commands.ts';
import { routerLinkName, uplinkName } from '../names.ts';
import { runBatch } from '../run.ts';
import { sendSettings } from './control.ts';

const READY_TIMEOUT_MS = 20_000;
const END_TIMEOUT_MS = 5_000;
const LOOK_MS = 200;

export interface RouterOptions {
  readonly clusterid: number;
  readonly controlPath: string;
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}

export class RouterProcess {
  readonly pid: number;
  /** Resolves, never rejects. */
  readonly ended: Promise<void>;
  readonly #options: RouterOptions;
  readonly #watch = new AbortController();

  private constructor(pid: number, ended: Promise<unknown> | null, options: RouterOptions) {
    this.pid = pid;
    this.#options = options;
    this.ended = ended ? ended.then(() => undefined) : this.#watchPid();
  }

  /** Resolves when the router is there and lets nothing pass. `onSpawned` is called first. */
  static async start(
    options: RouterOptions & { readonly logPath: string; readonly onSpawned: (pid: number) => void },
  ): Promise<RouterProcess> {
    const log = openSync(options.logPath, 'a', 0o600);
    const script = fileURLToPath(new URL('./main.ts', import.meta.url));
    const child = spawn(process.execPath, [script, String(options.clusterid), options.controlPath], {
      detached: true,
      stdio: ['ignore', 'pipe', log],
    });
    closeSync(log);
    const ended = new Promise<void>((resolve) => {
      child.once('exit', () => resolve());
      child.once('error', () => resolve());
    });
    const failed = (why: string): SnowflockError =>
      new SnowflockError(
        'unavailable',
        `the router of cluster ${options.clusterid} ${why}; see ${options.logPath}`,
      );
    try {
      if (child.pid !== undefined) options.onSpawned(child.pid);
      const { stdout } = child;
      const signal = AbortSignal.timeout(READY_TIMEOUT_MS);
      const hasEnded = ended.then(() => Promise.reject(failed('has ended')));
      if (stdout) await Promise.race([once(stdout, 'data', { signal }), hasEnded]);
      hasEnded.catch(() => undefined); // from here on it is the owner's
      stdout?.destroy();
      child.unref();
      return new RouterProcess(child.pid ?? 0, ended, options);
    } catch (error) {
      child.kill('SIGKILL');
      throw error instanceof SnowflockError ? error : failed(`is not ready after ${READY_TIMEOUT_MS} ms`);
    }
  }

  /** One that an earlier sfld started. */
  static attachTo(options: RouterOptions & { readonly pid: number }): RouterProcess {
    return new RouterProcess(options.pid, null, options);
  }

  /** Resolves when they are in force. */
  async set(settings: RouterSettings): Promise<void> {
    await sendSettings(this.#options.controlPath, settings);
  }

  /** It runs on, for the next sfld. */
  detach(): void {
    this.#watch.abort();
  }

  /** Ends it; its namespace and its links go with it. Idempotent. */
  async end(): Promise<void> {
    if (isAlive(this.pid)) process.kill(this.pid, 'SIGTERM');
    const late = new AbortController();
    const kill = sleep(END_TIMEOUT_MS, undefined, { signal: late.signal }).then(
      () => process.kill(this.pid, 'SIGKILL'),
      () => undefined, // it has ended
    );
    await this.ended;
    late.abort();
    await kill;
    // The kernel takes a namespace apart in its own time; the names are free at once.
    const { clusterid } = this.#options;
    await runBatch('ip', [routerLinkName(clusterid), uplinkName(clusterid)].map(removeLinkCommand), {
      force: true,
    });
  }

  async #watchPid(): Promise<void> {
    const { signal } = this.#watch;
    while (isAlive(this.pid)) {
      await sleep(LOOK_MS, undefined, { ref: false });
      if (signal.aborted) await new Promise<never>(() => undefined); // let go of: nobody is told
    }
  }
}
