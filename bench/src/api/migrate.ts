// A migration against a fork of the same VM, in turn: how long the guest does not run. The migration's time is from the command to stop until
// the VM's new host has said that it runs, so it holds the message back, too.

import { setTimeout as sleep } from 'node:timers/promises';
import { Lab } from '@snowflock/lab';
import { MigrateReply, SnowflockError } from '@snowflock/protocol';
import { BenchCluster } from '../cluster.ts';
import { figure, type Figure } from '../figures.ts';
import { GuestProgram } from '../fork/guest-program.ts';
import { forkOnce } from '../fork/snowflock.ts';

const SHAPE = { diskImage: 'micro', vcpus: 1, memoryMib: 128 };
const LAB = { name: 'bench', hosts: 2, cpus: 2, ramBytes: 2 ** 30 };
const PROGRAM = ['/usr/lib/snowflock/sffork'];
const REQUEST_TIMEOUT_MS = 120_000;
/** All pages are copied before it can go on to the next host. */
const FETCHED_TIMEOUT_MS = 60_000;
const POLL_MS = 200;

interface Round {
  readonly forkMs: number;
  readonly migrationMs: number;
}

export async function benchMigrate({
  quick,
  signal,
}: {
  quick: boolean;
  signal: AbortSignal;
}): Promise<Figure[]> {
  await using lab = await Lab.up({ ...LAB, signal });
  await using cluster = await BenchCluster.seed(lab, SHAPE);
  const { clusterid } = cluster;
  const rounds: Round[] = [];
  let at = cluster.host;
  for (let round = -1; round < (quick ? 3 : 12); round++) {
    signal.throwIfAborted();
    const to = lab.hosts.find(({ name }) => name !== at)?.name ?? at;
    const forkMs = await forkPause(lab, clusterid);
    const { pausedMs } = await migrate(lab, clusterid, to);
    at = to;
    // the first find caches cold
    if (round >= 0) rounds.push({ forkMs, migrationMs: pausedMs ?? Number.NaN });
  }
  return [
    figure({ name: 'pause', case: 'a fork', unit: 'ms', samples: rounds.map(({ forkMs }) => forkMs) }),
    figure({
      ...{ name: 'pause', case: 'a migration', unit: 'ms' },
      samples: rounds.map(({ migrationMs }) => migrationMs),
    }),
    figure({
      ...{ name: 'pause', case: 'a migration / a fork', unit: 'ratio' },
      samples: rounds.map(({ forkMs, migrationMs }) => migrationMs / forkMs),
    }),
  ];
}

async function forkPause(lab: Lab, clusterid: number): Promise<number> {
  await using program = await GuestProgram.start(lab.client(1), `${clusterid}:0`, PROGRAM);
  return (await forkOnce(lab, program)).fork.pauseMs;
}

async function migrate(lab: Lab, clusterid: number, host: string): Promise<MigrateReply> {
  const end = performance.now() + FETCHED_TIMEOUT_MS;
  for (;;) {
    try {
      return await lab.client(1).request({
        ...{ method: 'POST', path: `/v1/master/clusters/${clusterid}/vms/0/migrate` },
        ...{ body: { host }, reply: MigrateReply, timeoutMs: REQUEST_TIMEOUT_MS },
      });
    } catch (error) {
      const isLate = performance.now() > end;
      if (isLate || !(error instanceof SnowflockError) || error.code !== 'busy') throw error;
    }
    await sleep(POLL_MS);
  }
}
