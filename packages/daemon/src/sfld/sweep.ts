// What an earlier sfld of this host left behind when it was killed: processes, mounts, network devices, files.
// Until daemons adopt running VMs, a VM without its sfld cannot be reached by anybody: it goes.

import { readdirSync, readFileSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { sweep as sweepNetworks } from '@snowflock/network';
import { cleanupMount } from '@snowflock/replication';
import type { Log } from '../log.ts';

/** In the environment of every process that a sfld starts, and so of theirs: whose they are. */
export const OWNER_VARIABLE = 'SNOWFLOCK_OWNER';

/** Neither this process nor the one that started it, whose mark is an inherited one. */
function ownedPids(owner: string): number[] {
  const mark = `${OWNER_VARIABLE}=${owner}`;
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .map(Number)
    .filter((pid) => pid !== process.pid && pid !== process.ppid)
    .filter((pid) => {
      try {
        return readFileSync(`/proc/${pid}/environ`, 'latin1').split('\0').includes(mark);
      } catch {
        return false; // it ended while we looked, or is a kernel thread
      }
    });
}

function mountsUnder(directory: string): string[] {
  return readFileSync('/proc/self/mountinfo', 'utf8')
    .split('\n')
    .map((line) => line.split(' ')[4] ?? '')
    .filter((path) => path.startsWith(`${directory}/`));
}

export async function sweepLeftovers(options: { runDir: string; stateDir: string; log: Log }): Promise<void> {
  const pids = ownedPids(options.runDir);
  for (const pid of pids) {
    try {
      process.kill(pid, 'SIGKILL');
    } catch (error) {
      options.log.debug({ pid, err: error }, 'it had ended already');
    }
  }
  const mounts = mountsUnder(options.runDir);
  for (const mount of mounts) await cleanupMount(mount);
  const links = await sweepNetworks();
  for (const name of ['v', 't', 's']) await rm(join(options.runDir, name), { recursive: true, force: true });
  await rm(join(options.stateDir, 'vms'), { recursive: true, force: true });
  if (pids.length + mounts.length + links.length > 0)
    options.log.warn({ pids, mounts, links }, 'removed what an earlier sfld had left');
}
