// Breaks things in a lab, and mends them.

import { SnowflockError } from '@snowflock/protocol';
import { eventually } from '../support/deadline.ts';
import { TEST_DISK } from '../support/leftovers.ts';
import type { TestLab } from '../support/test-lab.ts';
import type { PlannedFault } from './schedule.ts';

const DISK_MIB = 64;
const FILL = 'chaos.fill';
const RESTART_MS = 60_000;
/** Words in the command lines of the processes that a fault of this kind ends. */
const VICTIMS = {
  'kill-memserver': 'memserver/main.ts',
  'kill-memtap': 'memtap/main.ts',
  'kill-vm': 'qemu-system',
} as const;

/** Where sfld and sfmd of a host keep what must survive. */
function stateDirs(lab: TestLab, k: number): string[] {
  const dir = lab.lab.hosts[k - 1]?.dir ?? '';
  return k === 1 ? [`${dir}/state`, `${dir}/master-state`] : [`${dir}/state`];
}

/** Each host's state lies on a small disk of its own, so that it can be filled. Before the first VM. */
export async function giveSmallDisks(lab: TestLab): Promise<void> {
  for (const { k } of lab.lab.hosts) {
    const daemons = k === 1 ? (['sfmd', 'sfld'] as const) : (['sfld'] as const);
    for (const daemon of daemons) await lab.killDaemon(k, daemon);
    for (const dir of stateDirs(lab, k)) {
      await lab.lab.exec(k, ['mkdir', '-p', dir]);
      const options = `size=${DISK_MIB}m,mode=700`;
      const mount = await lab.lab.exec(k, ['mount', '-t', 'tmpfs', '-o', options, TEST_DISK, dir]);
      if (mount.status !== 0) throw new Error(`a disk for host ${k}: ${mount.stderr}`);
    }
    for (const daemon of daemons) await lab.lab.startDaemon(k, daemon);
  }
  await lab.hostsUp();
}

/** Does it; answers what became of it, for the log. */
export async function breakIt(lab: TestLab, fault: PlannedFault): Promise<string> {
  const { kind, host } = fault;
  switch (kind) {
    case 'kill-sfld':
      await lab.killDaemon(host, 'sfld');
      return `sfld of host ${host}`;
    case 'kill-sfmd':
      await lab.killDaemon(1, 'sfmd');
      return 'sfmd';
    case 'cut-host':
      await lab.lab.cutHost(host);
      return `host ${host} cut off`;
    case 'fill-disk':
      return fillDisks(lab, host);
    default:
      return killOneOf(lab, VICTIMS[kind], fault);
  }
}

async function fillDisks(lab: TestLab, k: number): Promise<string> {
  for (const dir of stateDirs(lab, k))
    // it ends when there is no room
    await lab.lab.exec(k, ['dd', 'if=/dev/zero', `of=${dir}/${FILL}`, 'bs=64k']);
  return `disks of host ${k} full`;
}

async function killOneOf(lab: TestLab, word: string, { rank, host }: PlannedFault): Promise<string> {
  const hosts = lab.lab.hosts.length;
  // the host of the plan, or the next one that has such a process
  for (let step = 0; step < hosts; step++) {
    const k = ((host - 1 + step) % hosts) + 1;
    const pids = await lab.pids(k, word);
    const pid = pids[Math.floor(rank * pids.length)];
    if (pid === undefined) continue;
    try {
      process.kill(pid, 'SIGKILL');
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ESRCH') continue;
      throw error;
    }
    return `${word} ${pid} of host ${k}`;
  }
  return `no ${word} anywhere`;
}

/** Everything is whole again when this returns: cables, disks, daemons, and sfmd has every host. */
export async function mend(lab: TestLab): Promise<void> {
  for (const { k } of lab.lab.hosts) {
    await lab.lab.healHost(k);
    for (const dir of stateDirs(lab, k)) await lab.lab.exec(k, ['rm', '-f', `${dir}/${FILL}`]);
  }
  await startDead(lab);
  await lab.hostsUp();
}

/** Starts the daemons that are dead. */
export async function startDead(lab: TestLab): Promise<void> {
  for (const { k } of lab.lab.hosts)
    for (const daemon of k === 1 ? (['sfmd', 'sfld'] as const) : (['sfld'] as const))
      await eventually(RESTART_MS, `${daemon} of host ${k} to run`, async () => {
        if (lab.lab.daemonPid(k, daemon) !== undefined) return;
        try {
          await lab.lab.startDaemon(k, daemon);
        } catch (error) {
          if (!(error instanceof SnowflockError) || !error.message.includes('running already')) throw error;
        }
      });
}

/** Files on the small disks, which only the hosts themselves see. */
export async function filesOnDisks(lab: TestLab): Promise<string[]> {
  const found: string[] = [];
  for (const { k, dir } of lab.lab.hosts) {
    const { stdout } = await lab.lab.exec(k, ['find', ...stateDirs(lab, k), '-type', 'f']);
    for (const file of stdout.split('\n').filter(Boolean)) found.push(file.slice(dir.length + 1));
  }
  return found;
}
