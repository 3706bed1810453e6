// Which sfld a command talks to: --socket, SNOWFLOCK_SOCKET, this machine's, or that of host 1 of the lab `lab`.

import { existsSync } from 'node:fs';
import { DEFAULT_LAB_NAME, hostSocket } from '@snowflock/lab';
import { ControlClient, SnowflockError } from '@snowflock/protocol';

export const DEFAULT_SOCKET = '/run/snowflock/sfld.sock';

export interface SocketChoice {
  readonly flag?: string | undefined;
  readonly env?: string | undefined;
  readonly exists?: (path: string) => boolean;
}

export function resolveSocket({ flag, env, exists = existsSync }: SocketChoice): string {
  if (flag !== undefined) return flag;
  if (env !== undefined && env !== '') return env;
  const candidates = [DEFAULT_SOCKET, hostSocket(DEFAULT_LAB_NAME, 1)];
  const found = candidates.find((path) => exists(path));
  if (found !== undefined) return found;
  throw new SnowflockError(
    'unavailable',
    `no sfld runs here (no ${candidates.join(', no ')}); start one with 'sfld start', try 'snowflock lab up --hosts 2', ` +
      'or name its socket with --socket',
  );
}

export const SOCKET_OPTION = [
  '--socket <path>',
  'unix socket of the sfld to ask (default: the one on this machine)',
] as const;

export function openClient(options: { readonly socket?: string | undefined }): ControlClient {
  return new ControlClient({
    socketPath: resolveSocket({ flag: options.socket, env: process.env.SNOWFLOCK_SOCKET }),
  });
}
