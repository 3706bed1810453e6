// Taking a lab down, whatever state it is in: by what the machine shows, not by what lab.json says. Each step is
// bounded, and each goes on where an earlier one was interrupted.
//
//   clusters shut down by sfmd ─▶ daemons SIGTERM ─▶ rest SIGKILL ─▶ mounts ─▶ namespaces ─▶ files

import { rm, rmdir } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import { runBatch, runCommand } from '@snowflock/network';
import { ControlClient, NoReply, SnowflockError, SystemState } from '@snowflock/protocol';
import { checkLabName, hostSocket, labDir, labParent } from './names.ts';
import { findLeftovers, labNamespaces, mountsBelow, processesIn, type Leftover } from './leftovers.ts';
import { namespacePids, sendSignal } from './processes.ts';
import { isAlive, networksOf, readRecord, type LabRecord } from './record.ts';

/** For all clusters together: each VM is killed, not asked. */
const SHUTDOWN_TIMEOUT_MS = 20_000;
const STATE_TIMEOUT_MS = 3000;
const TERM_TIMEOUT_MS = 5000;
/** Exit of a QEMU with gigabytes of RAM takes up to a second or two. */
const KILL_TIMEOUT_MS = 20_000;
/** After this, processes that SIGKILL does not end are waiting for FUSE: their mounts are aborted. */
const ABORT_FUSE_AFTER_MS = 2000;
const POLL_MS = 25;

export interface DownResult {
  /** False when there was nothing to take down. */
  readonly existed: boolean;
  /** What did not go as it should, though the lab is gone: clusters that sfmd could not shut down. */
  readonly notes: readonly string[];
}

export interface DownOptions {
  /** Namespaces that are known to have been the lab's, beyond those that can be found. */
  readonly netInodes?: ReadonlySet<string>;
  readonly onProgress?: (line: string) => void;
}

/** Idempotent. Throws only when something of the lab could not be removed; the message lists it. */
export async function downLab(name: string, options: DownOptions = {}): Promise<DownResult> {
  checkLabName(name);
  const before = await findLeftovers(name, options);
  if (before.length === 0) return { existed: false, notes: [] };
  const say = options.onProgress ?? (() => undefined);
  const notes: string[] = [];
  const record = await readRecord(name);
  const inodes = networksOf(record, options.netInodes);
  const pids = async (): Promise<number[]> => {
    const found = new Set(await processesIn(inodes));
    for (const netns of await labNamespaces(name))
      for (const pid of await namespacePids(netns)) found.add(pid);
    return [...found];
  };
  if (record?.hosts.some((host) => isAlive(host, host.daemons.sfmd))) {
    say('shutting down clusters');
    await shutDownClusters(name, notes);
  }
  say('ending processes');
  if (record) await terminateDaemons(record);
  await killAll(pids);
  say('removing mounts, namespaces and files');
  for (const mount of await mountsBelow(labDir(name))) await runCommand(['umount', '-l', mount]);
  await runBatch(
    'ip',
    (await labNamespaces(name)).map((netns) => `netns del ${netns}`),
    { force: true },
  );
  await rm(labDir(name), { recursive: true, force: true, maxRetries: 3 });
  if (process.env.SNOWFLOCK_LAB_DIR === undefined) await rmdir(labParent()).catch(() => undefined); // holds other things
  const after = await findLeftovers(name, { netInodes: inodes });
  if (after.length > 0)
    throw new SnowflockError('internal', `lab '${name}' is not wholly gone: ${describe(after)}`);
  return { existed: true, notes };
}

export function describe(leftovers: readonly Leftover[]): string {
  return leftovers.map(({ kind, what }) => `${kind} ${what}`).join('; ');
}

async function shutDownClusters(name: string, notes: string[]): Promise<void> {
  using client = new ControlClient({ socketPath: hostSocket(name, 1) });
  const signal = AbortSignal.timeout(SHUTDOWN_TIMEOUT_MS);
  const note = (what: string, error: unknown): number =>
    notes.push(`${what}: ${error instanceof Error ? error.message : String(error)}`);
  try {
    const path = '/v1/master/state';
    const state = await client.request({
      method: 'GET',
      path,
      reply: SystemState,
      timeoutMs: STATE_TIMEOUT_MS,
      signal,
    });
    const ends = state.clusters.map(async ({ clusterid }) => {
      try {
        const cluster = `/v1/master/clusters/${clusterid}?force=1`;
        await client.request({
          method: 'DELETE',
          path: cluster,
          reply: NoReply,
          timeoutMs: SHUTDOWN_TIMEOUT_MS,
          signal,
        });
      } catch (error) {
        note(`cluster ${clusterid} was killed, not shut down`, error);
      }
    });
    await Promise.all(ends);
  } catch (error) {
    note('clusters were killed, not shut down', error);
  }
}

/** They end what is theirs; what is left after the time-out is killed. */
async function terminateDaemons(record: LabRecord): Promise<void> {
  const alive = (): number[] =>
    record.hosts.flatMap((host) => Object.values(host.daemons).filter((pid) => isAlive(host, pid)));
  for (const pid of alive()) sendSignal(pid, 'SIGTERM');
  const deadline = performance.now() + TERM_TIMEOUT_MS;
  while (alive().length > 0 && performance.now() < deadline) await sleep(POLL_MS);
}

async function killAll(list: () => Promise<number[]>): Promise<void> {
  const startedAt = performance.now();
  let aborted = false;
  for (;;) {
    const pids = await list();
    if (pids.length === 0) return;
    for (const pid of pids) sendSignal(pid, 'SIGKILL');
    const elapsedMs = performance.now() - startedAt;
    if (elapsedMs > KILL_TIMEOUT_MS)
      throw new SnowflockError(
        'timeout',
        `processes ${pids.join(', ')} do not end after SIGKILL; see their /proc/PID/stack`,
      );
    if (elapsedMs > ABORT_FUSE_AFTER_MS && !aborted) {
      aborted = true;
      for (const pid of pids) await abortFuse(pid);
    }
    await sleep(POLL_MS);
  }
}

/** Ends what a process waits for in FUSE: a forced unmount aborts the connection. Best effort. */
async function abortFuse(pid: number): Promise<void> {
  const { stdout } = await runCommand(['sh', '-c', `grep ' - fuse' /proc/${pid}/mountinfo | cut -d' ' -f5`]);
  for (const mount of stdout.split('\n').filter(Boolean))
    await runCommand(['nsenter', '--target', String(pid), '--mount', '--', 'umount', '-f', mount]);
}
