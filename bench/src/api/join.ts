// Join of clones that have returned results: from the call in the guest to the last byte there, the merge included.

import { setTimeout as sleep } from 'node:timers/promises';
import { Lab } from '@snowflock/lab';
import { NoReply, SeedReply, SystemState } from '@snowflock/protocol';
import { figure, type Figure } from '../figures.ts';
import { GuestProgram } from '../fork/guest-program.ts';

const CLONES = 16;
const RESULT_BYTES = 1 << 20;
const HOSTS = 4;
const CPUS = 8;
const RAM_BYTES = 4 * 2 ** 30;
const MEMORY_MIB = 128;
const REQUEST_TIMEOUT_MS = 120_000;
const EXITED_TIMEOUT_MS = 120_000;
const POLL_MS = 200;

export async function joinFigures({
  quick,
  signal,
}: {
  quick: boolean;
  signal: AbortSignal;
}): Promise<Figure[]> {
  await using lab = await Lab.up({ name: 'bench', hosts: HOSTS, cpus: CPUS, ramBytes: RAM_BYTES, signal });
  const client = lab.client(1);
  const { clusterid, vmid } = await client.request({
    method: 'POST',
    path: '/v1/master/clusters',
    body: { diskImage: 'micro', vcpus: 1, memoryMib: MEMORY_MIB },
    reply: SeedReply,
    timeoutMs: REQUEST_TIMEOUT_MS,
  });
  const samples: number[] = [];
  {
    const path = '/usr/lib/snowflock/sfresult';
    await using program = await GuestProgram.start(client, `${clusterid}:${vmid}`, [path]);
    for (let round = 0; round <= (quick ? 3 : 10); round++) {
      signal.throwIfAborted();
      const [, ticket = ''] = (await program.ask(`fork ${CLONES} ${RESULT_BYTES}`)).split(' ');
      await exited(lab, clusterid);
      const [word, count, bytes, ms] = (await program.ask(`join ${ticket}`)).split(' ');
      if (word !== 'joined' || Number(count) !== CLONES || Number(bytes) !== CLONES * RESULT_BYTES)
        throw new Error(`joining ${CLONES} clones: ${word ?? ''} ${count ?? ''} ${bytes ?? ''}`);
      // the first pays for what is done once
      if (round > 0) samples.push(Number(ms));
    }
  }
  await client.request({
    method: 'DELETE',
    path: `/v1/master/clusters/${clusterid}?force=1`,
    reply: NoReply,
    timeoutMs: REQUEST_TIMEOUT_MS,
  });
  return [
    figure({ name: 'join', case: `${CLONES} clones, 1 MiB each, ${HOSTS} hosts`, unit: 'ms', samples }),
  ];
}

/** Until sfmd knows that all of them have. */
async function exited(lab: Lab, clusterid: number): Promise<void> {
  const end = performance.now() + EXITED_TIMEOUT_MS;
  while (performance.now() < end) {
    const { clusters } = await lab.client(1).request({
      method: 'GET',
      path: '/v1/master/state',
      reply: SystemState,
      timeoutMs: REQUEST_TIMEOUT_MS,
    });
    const vms = clusters.find((each) => each.clusterid === clusterid)?.vms ?? [];
    if (vms.filter(({ status }) => status === 'exited').length === CLONES) return;
    await sleep(POLL_MS);
  }
  throw new Error(`the ${CLONES} clones have not exited in ${EXITED_TIMEOUT_MS} ms`);
}
