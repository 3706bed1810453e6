// Tells the service manager that started this daemon how it does (sd_notify(3)): READY=1, STOPPING=1, WATCHDOG=1.
//
// The protocol is a datagram to a unix socket, which Node cannot send; systemd-notify, which is there where systemd is, sends
// it, in the name of this process.

import { execFile } from 'node:child_process';
import type { Log } from './log.ts';

const NOTIFY_TIMEOUT_MS = 5000;

export class ServiceManager implements Disposable {
  readonly #socket: string | undefined;
  readonly #log: Log;
  readonly #watchdog: NodeJS.Timeout | undefined;
  #warned = false;

  constructor(log: Log, env: NodeJS.ProcessEnv = process.env) {
    this.#log = log;
    this.#socket = env['NOTIFY_SOCKET'];
    const watchdogUs = Number(env['WATCHDOG_USEC'] ?? 0);
    const watched = watchdogUs > 0 && (env['WATCHDOG_PID'] ?? String(process.pid)) === String(process.pid);
    // For this process alone: a VM must not speak for the daemon.
    for (const name of ['NOTIFY_SOCKET', 'WATCHDOG_USEC', 'WATCHDOG_PID']) delete env[name];
    // From the event loop: a daemon that hangs is not alive.
    if (this.#socket !== undefined && watched)
      this.#watchdog = setInterval(() => void this.#send('WATCHDOG=1'), watchdogUs / 2000);
    this.#watchdog?.unref();
  }

  ready(status: string): Promise<void> {
    return this.#send('READY=1', `STATUS=${status}`);
  }

  stopping(): Promise<void> {
    return this.#send('STOPPING=1');
  }

  [Symbol.dispose](): void {
    clearInterval(this.#watchdog);
  }

  /** Never rejects: a daemon that works is worth more than one that is announced. */
  #send(...assignments: string[]): Promise<void> {
    if (this.#socket === undefined) return Promise.resolve();
    const env = { ...process.env, NOTIFY_SOCKET: this.#socket };
    return new Promise((resolve) => {
      execFile(
        'systemd-notify',
        assignments,
        { env, timeout: NOTIFY_TIMEOUT_MS },
        (error, _stdout, stderr) => {
          if (error && !this.#warned) {
            this.#warned = true;
            const missing = (error as NodeJS.ErrnoException).code === 'ENOENT';
            const reason = missing ? 'systemd-notify is not installed' : stderr.trim() || error.message;
            this.#log.warn(
              { reason },
              'the service manager (NOTIFY_SOCKET) cannot be told that this daemon runs',
            );
          }
          resolve();
        },
      );
    });
  }
}
