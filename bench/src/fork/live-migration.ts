// QEMU's own live migration, over TCP to a second QEMU on this machine: pre-copy, which sends all memory before the guest changes place,
// and post-copy, which changes place at once and lets the destination fault for what has not come. Timed from the order to the answer of the
// guest's agent at the destination; counted until all has been sent. The source then goes on, for the next round.

import { createServer } from 'node:net';
import { z } from 'zod';
import {
  ANONYMOUS,
  answered,
  booting,
  capabilities,
  goOn,
  inScratch,
  PARENT,
  ping,
  start,
  type PeerGuest,
  type PeerVm,
} from './peer-vm.ts';
import type { CopySample } from './peers.ts';
import { until } from './records.ts';

const MIGRATION_TIMEOUT_MS = 240_000;
const POLL_MS = 5;
/** As fast as the machine can; QEMU's default is for a busy network. */
const MAX_BANDWIDTH = 2 ** 37;
/** Another program may take the free port that was found. */
const PORT_TRIES = 5;

const Migration = z.object({
  status: z.string().optional(),
  'error-desc': z.string().optional(),
  ram: z.object({ transferred: z.number() }).optional(),
});

export type MigrationKind = 'pre-copy' | 'post-copy';

export async function liveMigration(
  guest: PeerGuest,
  { kind, rounds }: { kind: MigrationKind; rounds: number },
): Promise<CopySample[]> {
  return inScratch(guest, async (directory) => {
    await using parent = await start(guest, { name: PARENT, directory }, booting(guest, ANONYMOUS));
    await answered(parent);
    await guest.warm(parent);
    const samples: CopySample[] = [];
    for (let round = 0; round < rounds; round++) {
      const where = { name: `copy${round}`, directory };
      await using copy = await start(guest, where, { origin: { kind: 'incoming' }, ram: ANONYMOUS });
      samples.push(await migrate(parent, copy, { kind, id: 100 + round }));
      await goOn(parent);
    }
    return samples;
  });
}

async function migrate(
  parent: PeerVm,
  copy: PeerVm,
  { kind, id }: { kind: MigrationKind; id: number },
): Promise<CopySample> {
  const postCopy = kind === 'post-copy';
  for (const { qemu } of [parent, copy]) {
    await qemu.qmp.execute(capabilities(postCopy ? ['postcopy-ram'] : []));
    const parameters = { 'max-bandwidth': MAX_BANDWIDTH };
    await qemu.qmp.execute({ execute: 'migrate-set-parameters', arguments: parameters });
  }
  const uri = await listen(copy);
  // while it waits for its state: go on as soon as that is there
  await copy.qemu.qmp.execute({ execute: 'cont' });
  const begin = performance.now();
  await parent.qemu.qmp.execute({ execute: 'migrate', arguments: { uri } });
  if (postCopy) {
    await reaches(parent, 'active');
    await parent.qemu.qmp.execute({ execute: 'migrate-start-postcopy' });
  } else {
    await reaches(parent, 'completed');
  }
  await runs(copy);
  await ping(copy, id);
  const ms = performance.now() - begin;
  const { ram } = await reaches(parent, 'completed');
  return { ms, bytes: ram?.transferred ?? Number.NaN };
}

async function listen(copy: PeerVm): Promise<string> {
  for (let tries = 1; ; tries++) {
    const uri = `tcp:127.0.0.1:${await freePort()}`;
    try {
      await copy.qemu.qmp.execute({ execute: 'migrate-incoming', arguments: { uri } });
      return uri;
    } catch (error) {
      if (tries === PORT_TRIES) throw error;
    }
  }
}

async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const address = server.address();
  await new Promise((resolve) => server.close(resolve));
  if (address === null || typeof address === 'string') throw new Error('no free port');
  return address.port;
}

/** Resolves with what QEMU says when the migration is as wanted. */
async function reaches({ qemu }: PeerVm, wanted: 'active' | 'completed'): Promise<z.infer<typeof Migration>> {
  const look = async (): Promise<z.infer<typeof Migration> | undefined> => {
    const found = Migration.parse(await qemu.qmp.execute({ execute: 'query-migrate' }));
    if (found.status === 'failed')
      throw new Error(`the migration failed: ${found['error-desc'] ?? 'no reason given'}`);
    return found.status === wanted ? found : undefined;
  };
  return until(MIGRATION_TIMEOUT_MS, `a migration to be ${wanted}`, look, POLL_MS);
}

const Status = z.object({ running: z.boolean() });

async function runs({ qemu }: PeerVm): Promise<void> {
  const look = async (): Promise<true | undefined> =>
    Status.parse(await qemu.qmp.execute({ execute: 'query-status' })).running ? true : undefined;
  await until(MIGRATION_TIMEOUT_MS, 'the copy to run', look, POLL_MS);
}
