// Which sfld of this machine is asked when none is named.

import { existsSync } from 'node:fs';
import { SnowflockError } from '@snowflock/protocol';

export const DEFAULT_SOCKET = '/run/snowflock/sfld.sock';

export interface SocketChoice {
  readonly named?: string | undefined;
  /** SNOWFLOCK_SOCKET. */
  readonly env?: string | undefined;
  /** Tried after the default one. */
  readonly further?: readonly string[];
  readonly exists?: (path: string) => boolean;
}

export function findSocket({ named, env, further = [], exists = existsSync }: SocketChoice): string {
  if (named !== undefined) return named;
  if (env !== undefined && env !== '') return env;
  const candidates = [DEFAULT_SOCKET, ...further];
  const found = candidates.find((path) => exists(path));
  if (found !== undefined) return found;
  throw new SnowflockError(
    'unavailable',
    `no sfld runs here (no ${candidates.join(', no ')}); start one with 'sfld start', try 'snowflock lab up --hosts 2', ` +
      'or name its socket (--socket, SNOWFLOCK_SOCKET)',
  );
}
