// A network namespace without a name: it is held by this process alone, by a file and a socket, and so goes with it however it ends,
// with all devices and rules in it.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import type { Socket } from 'node:dgram';
import { closeSync, openSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { SnowflockError } from '@snowflock/protocol';
import { runChecked } from '../run-command.ts';
import { NETWORK_TOOL_TIMEOUT_MS } from '../run.ts';

/** Node starts in 50 ms here. */
const MADE_TIMEOUT_MS = 10_000;

export class RouterNamespace implements Disposable {
  /** Of the name server; bound in the namespace. */
  readonly socket: Socket;
  /** A path by which other processes find the namespace while this one lives. */
  readonly path: string;
  readonly #fd: number;

  private constructor(socket: Socket, fd: number) {
    this.socket = socket;
    this.#fd = fd;
    this.path = `/proc/${process.pid}/fd/${fd}`;
  }

  static async make(): Promise<RouterNamespace> {
    const script = fileURLToPath(new URL('./inside.ts', import.meta.url));
    const child = spawn('unshare', ['--net', '--', process.execPath, script], {
      stdio: ['ignore', 'ignore', 'inherit', 'ipc'],
    });
    const late = AbortSignal.timeout(MADE_TIMEOUT_MS);
    const exited = once(child, 'exit');
    try {
      const made = await Promise.race([
        once(child, 'message', { signal: late }),
        exited.then(() => {
          throw new SnowflockError('unavailable', 'the network namespace of the router could not be made');
        }),
      ]);
      const fd = openSync(`/proc/${child.pid ?? 0}/ns/net`, 'r');
      return new RouterNamespace(made[1] as Socket, fd);
    } finally {
      child.kill('SIGKILL');
      await exited.catch(() => undefined); // it could not be started: said above
    }
  }

  /** Runs `ip`, `tc` or `nft` in it. Throws when that fails. */
  async run(argv: readonly string[], input = ''): Promise<void> {
    await runChecked(['nsenter', `--net=${this.path}`, '--', ...argv], {
      input,
      timeoutMs: NETWORK_TOOL_TIMEOUT_MS,
    });
  }

  [Symbol.dispose](): void {
    this.socket.close();
    closeSync(this.#fd);
  }
}
