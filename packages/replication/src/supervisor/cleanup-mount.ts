// What a supervisor does with the mount of a memtap that is gone, or stuck.

import { readFileSync } from 'node:fs';
import { SnowflockError } from '@snowflock/protocol/pages';
import { unmountFuse } from '../memtap/fuse/mount.ts';

const CLEANUP_TIMEOUT_MS = 2000;
/** One directory can be mounted over several times; more layers than this is somebody else's doing. */
const MAX_LAYERS = 4;

/**
 * Takes every mount on `directory` away: by force, which also ends readers that wait and lets a memtap that was killed
 * in the middle of a STORE finish dying, else lazily. Bounded in time. Nothing mounted: does nothing.
 * Throws 'unavailable' when something is still mounted at the end.
 */
export async function cleanupMount(directory: string): Promise<void> {
  for (let layer = 0; layer < MAX_LAYERS && isMounted(directory); layer++)
    await unmountFuse(directory, { timeoutMs: CLEANUP_TIMEOUT_MS });
  if (isMounted(directory))
    throw new SnowflockError('unavailable', `${directory} is still mounted; look for who uses it`);
}

/** Whether something is mounted on `directory` in our mount name space. Reads only a table: never blocks on the mount. */
export function isMounted(directory: string): boolean {
  // field 5 is the mount point, with blanks and backslashes in octal (proc(5))
  const wanted = directory.replace(
    /[ \t\n\\]/g,
    (char) => `\\${char.charCodeAt(0).toString(8).padStart(3, '0')}`,
  );
  return readFileSync('/proc/self/mountinfo', 'utf8')
    .split('\n')
    .some((line) => line.split(' ')[4] === wanted);
}
