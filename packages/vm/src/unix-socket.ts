// Connecting to a unix socket that another process is about to create.

import { connect, type Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { SnowflockError } from '@snowflock/protocol';

/** Between attempts while the socket is not there yet: small against QEMU's 50 ms start. */
const RETRY_MS = 2;

function tryConnect(path: string): Promise<Socket | null> {
  return new Promise((resolve, reject) => {
    const socket = connect(path);
    socket.once('connect', () => {
      socket.removeAllListeners('error');
      resolve(socket);
    });
    socket.once('error', (error: NodeJS.ErrnoException) => {
      socket.destroy();
      if (error.code === 'ENOENT' || error.code === 'ECONNREFUSED' || error.code === 'EAGAIN') resolve(null);
      else reject(error);
    });
  });
}

/** Connects once the socket exists; stops early when `gone` resolves (its maker has died). */
export async function connectUnix(
  path: string,
  options: { timeoutMs: number; gone?: Promise<unknown>; what: string },
): Promise<Socket> {
  const deadline = performance.now() + options.timeoutMs;
  let dead = false;
  void options.gone?.then(() => (dead = true));
  while (!dead && performance.now() < deadline) {
    const socket = await tryConnect(path);
    if (socket) return socket;
    await sleep(RETRY_MS);
  }
  throw dead
    ? new SnowflockError('vm-failed', `${options.what}: the process ended before it listened on ${path}`)
    : new SnowflockError(
        'timeout',
        `${options.what}: nothing listened on ${path} within ${options.timeoutMs} ms`,
      );
}
