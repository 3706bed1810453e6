// Memory correctness: a guest fills its memory with a pattern, and forks while it writes. The master VM and every clone check
// every page, the clones rewrite theirs and check again: no byte is wrong, none torn.
//
// SNOWFLOCK_LONG=1: twenty rounds, as the project's goals ask; else three.

import { describe, expect, it } from 'vitest';
import { eventually } from './support/deadline.ts';
import { PROBES } from './support/guest.ts';
import { requireVm } from './require-vm.ts';
import { sharedLab } from './support/test-lab.ts';

const RUN = requireVm();
const ROUNDS = process.env.SNOWFLOCK_LONG === '1' ? 20 : 3;
const CLONES = 4;
/** Most of the guest's memory; with a quarter more that is rewritten all the while. */
const AREA_MIB = 64;
const GUEST_MIB = 160;
/** One fork, with all pages fetched over the network, checked, rewritten and checked again, under emulation. */
const ROUND_MS = 120_000;

describe.skipIf(!RUN)('memory of a fork', () => {
  const lab = sharedLab({ hosts: 2, cpus: 6, ramMib: 2048 });

  it(
    `has no wrong byte in ${ROUNDS} rounds of ${CLONES} clones`,
    async () => {
      const master = await lab().seed({ diskImage: 'micro', vcpus: 1, memoryMib: GUEST_MIB });
      await using program = await master.start([`${PROBES}/sfmemtest`, '--writer', String(AREA_MIB), '77']);
      expect(await program.line()).toBe('filled');
      for (let round = 1; round <= ROUNDS; round++) {
        const answer = await program.ask(`clone ${CLONES}`, ROUND_MS);
        expect(answer, `round ${round}`).toMatch(/^master wrong=0 ticket=\S+ torn=0$/);
        const ticket = /ticket=(\S+)/.exec(answer)?.[1] ?? '';
        const clones = await lab().clonesOf(master, ticket);
        expect(clones.length).toBe(CLONES);
        await Promise.all(
          clones.map(async ({ vmid }) => {
            const result = `/run/sfmemtest.${vmid}`;
            const told = await eventually(ROUND_MS, result, () => master.sibling(vmid).run(['cat', result]));
            expect(told, `round ${round}`).toBe(`${vmid} wrong=0 pages=${AREA_MIB * 256} torn=0`);
          }),
        );
        expect(await program.ask(`merge ${ticket}`)).toBe(`merged ${ticket}`);
      }
    },
    ROUNDS * ROUND_MS,
  );
});
