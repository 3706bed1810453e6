// What an earlier sfld of this host left behind and this one did not adopt: processes, mounts, network devices, files. It goes.

import { readdirSync, readFileSync } from 'node:fs';
import { readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { removeFilters, sweep as sweepNetworks, tapName } from '@snowflock/network';
import type { VmRef } from '@snowflock/protocol';
import { cleanupMount } from '@snowflock/replication';
import type { Log } from '../log.ts';
import { vmDirectories } from './context.ts';

/** In the environment of every process that a sfld starts, and so of theirs: whose they are. */
export const OWNER_VARIABLE = 'SNOWFLOCK_OWNER';

/** What was adopted, and is left alone. */
export interface Kept {
  /** With all their descendants: a memserver's qemu-nbd, a master VM's frozen copies (whose memserver owns their life). */
  readonly pids: Set<number>;
  /** With all below them, mounts too. */
  readonly directories: Set<string>;
  readonly taps: Set<string>;
  /** Whose bridges are in use. */
  readonly clusters: Set<number>;
}

export function keepNothing(): Kept {
  return { pids: new Set(), directories: new Set(), taps: new Set(), clusters: new Set() };
}

/** Process, tap and files of a VM. */
export function keepVm(
  kept: Kept,
  context: { readonly runDir: string; readonly stateDir: string },
  vm: { readonly ref: VmRef; readonly pid: number },
): void {
  const directories = vmDirectories(context, vm.ref);
  kept.pids.add(vm.pid);
  kept.directories.add(directories.run).add(directories.state);
  kept.taps.add(tapName(vm.ref));
  kept.clusters.add(vm.ref.clusterid);
}

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

/** Whether it or one of its ancestors is among them. */
function descendsFrom(pid: number, pids: ReadonlySet<number>): boolean {
  for (let each = pid; each > 1; each = parentOf(each)) if (pids.has(each)) return true;
  return false;
}

function parentOf(pid: number): number {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'latin1');
    return Number(stat.slice(stat.lastIndexOf(')') + 2).split(' ')[1]);
  } catch {
    return 0; // it has just ended
  }
}

async function entriesOf(directory: string): Promise<string[]> {
  try {
    return (await readdir(directory)).map((name) => join(directory, name));
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return [];
    throw error;
  }
}

export async function sweepLeftovers(options: {
  readonly runDir: string;
  readonly stateDir: string;
  readonly kept: Kept;
  readonly log: Log;
}): Promise<void> {
  const { kept } = options;
  const pids = ownedPids(options.runDir).filter((pid) => !descendsFrom(pid, kept.pids));
  for (const pid of pids) {
    try {
      process.kill(pid, 'SIGKILL');
    } catch (error) {
      options.log.debug({ pid, err: error }, 'it had ended already');
    }
  }
  const isKept = (path: string): boolean =>
    [...kept.directories].some((directory) => path === directory || path.startsWith(`${directory}/`));
  const mounts = mountsUnder(options.runDir).filter((path) => !isKept(path));
  for (const mount of mounts) await cleanupMount(mount);
  const links = await sweepNetworks({
    only: ({ name, clusterid, vmid }) =>
      vmid === null ? !kept.clusters.has(clusterid) : !kept.taps.has(name),
  });
  if (kept.clusters.size === 0) await removeFilters();
  const parents = [
    ...['v', 't', 's'].map((name) => join(options.runDir, name)),
    join(options.stateDir, 'vms'),
  ];
  for (const parent of parents)
    for (const path of await entriesOf(parent))
      if (!isKept(path)) await rm(path, { recursive: true, force: true });
  if (pids.length + mounts.length + links.length > 0)
    options.log.warn({ pids, mounts, links }, 'removed what an earlier sfld had left');
}
