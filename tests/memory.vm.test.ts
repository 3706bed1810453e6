// Memory correctness: a guest fills its memory with a pattern, and forks while it writes. The master VM and every clone check
// every page, the clones rewrite theirs and check again: no byte is wrong, none torn.
//
// SNOWFLOCK_LONG=1: twenty rounds, as the project's goals ask; else three.

import { describe, expect, it } from 'vitest';
import { MemoryTest } from './support/memtest.ts';
import { requireVm } from './require-vm.ts';
import { sharedLab } from './support/test-lab.ts';

const RUN = requireVm();
const ROUNDS = process.env.SNOWFLOCK_LONG === '1' ? 20 : 3;
const CLONES = 4;
/** Most of the guest's memory; with a quarter more that is rewritten all the while. */
const AREA_MIB = 64;
const GUEST_MIB = 160;
/** Some five times what one takes on an idle machine of two cores. */
const ROUND_MS = 30_000;

describe.skipIf(!RUN)('memory of a fork', () => {
  const lab = sharedLab({ hosts: 2, cpus: 6, ramMib: 2048 });

  it(
    `has no wrong byte in ${ROUNDS} rounds of ${CLONES} clones`,
    async () => {
      const master = await lab().seed({ diskImage: 'micro', vcpus: 1, memoryMib: GUEST_MIB });
      await using memory = await MemoryTest.start(lab(), master, { areaMib: AREA_MIB, writer: true });
      for (let round = 0; round < ROUNDS; round++) {
        const { ticket, clones } = await memory.fork(CLONES);
        expect(clones.length).toBe(CLONES);
        await Promise.all(clones.map((clone) => memory.expectRight(clone)));
        await memory.merge(ticket);
      }
    },
    60_000 + ROUNDS * ROUND_MS,
  );
});
