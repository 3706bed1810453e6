// Which sfld a command talks to: --socket, SNOWFLOCK_SOCKET, this machine's, or that of host 1 of the lab `lab`.

import { DEFAULT_LAB_NAME, hostSocket } from '@snowflock/lab';
import { ControlClient } from '@snowflock/protocol';
import { findSocket, type SocketChoice, System } from '@snowflock/sdk';

export const SOCKET_OPTION = [
  '--socket <path>',
  'unix socket of the sfld to ask (default: the one on this machine)',
] as const;

interface SocketOptions {
  readonly socket?: string | undefined;
}

export function socketChoice({ socket }: SocketOptions): SocketChoice {
  const further = [hostSocket(DEFAULT_LAB_NAME, 1)];
  return { named: socket, env: process.env.SNOWFLOCK_SOCKET, further };
}

export function openSystem(options: SocketOptions): System {
  return System.connect({ socketPath: findSocket(socketChoice(options)) });
}

/** For what the SDK has no call for. */
export function openClient(options: SocketOptions): ControlClient {
  return new ControlClient({ socketPath: findSocket(socketChoice(options)) });
}
