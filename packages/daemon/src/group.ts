// The number of a group, as the system's name service has it.

import { execFile } from 'node:child_process';
import { SnowflockError } from '@snowflock/protocol';

/** Groups may come from a directory service on the network. */
const LOOKUP_TIMEOUT_MS = 10_000;

/** Null for null. */
export async function groupId(name: string | null): Promise<number | null> {
  if (name === null) return null;
  const line = await new Promise<string>((resolve) => {
    execFile('getent', ['group', name], { timeout: LOOKUP_TIMEOUT_MS }, (error, stdout) =>
      resolve(error ? '' : stdout),
    );
  });
  const gid = /^[^:]*:[^:]*:(\d+):/.exec(line)?.[1];
  if (gid !== undefined) return Number(gid);
  throw new SnowflockError(
    'bad-config',
    `there is no group '${name}' (socket_group); make it (groupadd ${name}), or correct the configuration`,
  );
}
