// What one did before, on the same guest: cold boot; suspend to a file, copy it, resume (template-clone.ts and live-migration.ts have the
// rest). Each is timed until the guest's agent answers. Where a peer can have its processes pre-started as ours
// are, it has.

import { copyFile, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import {
  ANONYMOUS,
  answered,
  booting,
  capabilities,
  goOn,
  inScratch,
  PARENT,
  migrationDone,
  ping,
  start,
  type PeerGuest,
} from './peer-vm.ts';

export async function coldBootMs(guest: PeerGuest): Promise<number> {
  return inScratch(guest, async (directory) => {
    const begin = performance.now();
    await using vm = await start(guest, { name: 'boot', directory }, booting(guest, ANONYMOUS));
    await answered(vm);
    return performance.now() - begin;
  });
}

export interface CopySample {
  readonly ms: number;
  /** Of state that was sent. */
  readonly bytes: number;
}

/** From `stop` in the parent to the answer of the resumed copy; one sample for each round on one warmed parent. */
export async function suspendCopyResume(guest: PeerGuest, rounds: number): Promise<CopySample[]> {
  return inScratch(guest, async (directory) => {
    await using parent = await start(guest, { name: PARENT, directory }, booting(guest, ANONYMOUS));
    await answered(parent);
    await guest.warm(parent);
    await parent.qemu.qmp.execute(capabilities([]));
    // As fast as the machine can: QEMU's default limit is for live migration over a busy network.
    await parent.qemu.qmp.execute({
      execute: 'migrate-set-parameters',
      arguments: { 'max-bandwidth': 2 ** 37 },
    });
    const samples: CopySample[] = [];
    for (let round = 0; round < rounds; round++) {
      const [saved, copied] = [join(directory, 'saved'), join(directory, 'copied')];
      const where = { name: `copy${round}`, directory };
      await using copy = await start(guest, where, { origin: { kind: 'incoming' }, ram: ANONYMOUS });
      await copy.qemu.qmp.execute(capabilities([]));
      const begin = performance.now();
      await parent.qemu.qmp.execute({ execute: 'stop' });
      await migrationDone(parent, () =>
        parent.qemu.qmp.execute({ execute: 'migrate', arguments: { uri: `exec:cat > ${saved}` } }),
      );
      await goOn(parent);
      await copyFile(saved, copied);
      await migrationDone(copy, () =>
        copy.qemu.qmp.execute({ execute: 'migrate-incoming', arguments: { uri: `exec:cat ${copied}` } }),
      );
      await goOn(copy);
      await ping(copy, 100 + round);
      samples.push({ ms: performance.now() - begin, bytes: (await stat(saved)).size });
      await rm(saved);
      await rm(copied);
    }
    return samples;
  });
}
