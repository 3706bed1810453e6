// Our side of the fork bench: a lab of two hosts, a master VM with so much touched memory, and forks of one clone each, which
// the second host runs.

import { setTimeout as sleep } from 'node:timers/promises';
import type { Lab } from '@snowflock/lab';
import { CloneRecord, ForkRecord } from '@snowflock/protocol';
import { z } from 'zod';
import { BenchCluster } from '../cluster.ts';
import { GuestProgram } from './guest-program.ts';

const REQUEST_TIMEOUT_MS = 120_000;
/** Grants start processes in the background; a user's program has its ticket some time before it forks, too. */
const PRESTART_MS = 1_500;
const UNOBSERVED_MS = 400;

export interface ForkSample {
  readonly fork: ForkRecord;
  readonly clone: CloneRecord;
}

export interface ForkSamples {
  readonly samples: readonly ForkSample[];
  /** Longest gap that a spinning clock reader in the master VM saw at each of some further forks, us. */
  readonly gapsUs: readonly number[];
}

async function get<T>(lab: Lab, k: number, path: string, reply: z.ZodType<T>): Promise<T> {
  return lab.client(k).request({ method: 'GET', path, reply, timeoutMs: REQUEST_TIMEOUT_MS });
}

async function cloneRecord(lab: Lab, ticket: string): Promise<CloneRecord> {
  await sleep(UNOBSERVED_MS); // asking costs CPU time, of which the clone has need until it has answered
  for (let attempt = 0; attempt < 200; attempt++) {
    for (const host of lab.hosts) {
      const [record] = await get(lab, host.k, `/v1/clones?ticket=${ticket}`, z.array(CloneRecord));
      if (record?.firstAnswerAtMs) return record;
    }
    await sleep(50);
  }
  throw new Error(`the clone of ticket ${ticket} never answered`);
}

/** Of a VM in which `program`, an sffork, runs; its clone is gone when this returns. */
export async function forkOnce(lab: Lab, program: GuestProgram): Promise<ForkSample> {
  const ticket = (await program.ask('ticket 1')).split(' ')[1] ?? '';
  await sleep(PRESTART_MS);
  await program.ask(`clone ${ticket}`);
  const clone = await cloneRecord(lab, ticket);
  const forks = lab.hosts.map(({ k }) => get(lab, k, `/v1/forks?ticket=${ticket}`, z.array(ForkRecord)));
  const [fork] = (await Promise.all(forks)).flat();
  if (!fork) throw new Error(`no record of the fork of ticket ${ticket}`);
  await program.ask(`merge ${ticket}`);
  return { fork, clone };
}

export async function measureForks(
  lab: Lab,
  guest: { image: string; memoryMib: number; touchedMib: number; rounds: number; gapRounds: number },
): Promise<ForkSamples> {
  const { image: diskImage, memoryMib } = guest;
  await using cluster = await BenchCluster.seed(lab, { diskImage, vcpus: 1, memoryMib });
  const vm = `${cluster.clusterid}:0`;
  const client = lab.client(1);
  await using stack = new AsyncDisposableStack();
  const touch = stack.use(
    await GuestProgram.start(client, vm, ['/usr/lib/snowflock/sftouch', String(guest.touchedMib)]),
  );
  await touch.ask(null);
  const program = stack.use(await GuestProgram.start(client, vm, ['/usr/lib/snowflock/sffork']));
  const samples: ForkSample[] = [];
  await forkOnce(lab, program); // the first finds caches of the host cold: connections, files
  for (let round = 0; round < guest.rounds; round++) samples.push(await forkOnce(lab, program));
  const gapsUs: number[] = [];
  const gap = stack.use(await GuestProgram.start(client, vm, ['/usr/lib/snowflock/sfgap', '0']));
  for (let round = 0; round < guest.gapRounds; round++) {
    const ticket = (await program.ask('ticket 1')).split(' ')[1] ?? '';
    await sleep(PRESTART_MS);
    await gap.ask('reset');
    await program.ask(`clone ${ticket}`);
    gapsUs.push(Number(await gap.ask('gap')));
    await program.ask(`merge ${ticket}`);
  }
  return { samples, gapsUs };
}
