// sfmd's own unix socket, on the master host: what concerns certificates is asked there, not through an sfld.

import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { DEFAULT_LAB_NAME, hostSocket } from '@snowflock/lab';
import { ControlClient, SnowflockError } from '@snowflock/protocol';

export const MASTER_SOCKET_OPTION = [
  '--socket <path>',
  "sfmd's unix socket (default: the one on this machine; SNOWFLOCK_MASTER_SOCKET)",
] as const;

export function openMasterClient(options: { readonly socket?: string | undefined }): ControlClient {
  const named = options.socket ?? process.env.SNOWFLOCK_MASTER_SOCKET;
  if (named !== undefined && named !== '') return new ControlClient({ socketPath: named });
  const ofLab = join(dirname(dirname(hostSocket(DEFAULT_LAB_NAME, 1))), 'master-run/sfmd.sock');
  const candidates = ['/run/snowflock/sfmd.sock', ofLab];
  const socketPath = candidates.find((path) => existsSync(path));
  if (socketPath !== undefined) return new ControlClient({ socketPath });
  throw new SnowflockError(
    'unavailable',
    `no sfmd runs here (no ${candidates.join(', no ')}); this is for the master host: start it with 'sfmd start', or name its socket with --socket`,
  );
}
