// Clusters that fork, join and check their memory in a lab of four hosts, while daemons, page servers and VMs are killed, hosts
// cut off, disks filled. `npm run test:chaos -- --seed S --minutes M` runs it for longer; a short one is among the tests.

import { describe, it } from 'vitest';
import { giveSmallDisks } from './chaos/faults.ts';
import { Random } from './chaos/random.ts';
import { runRound } from './chaos/round.ts';
import { planRound } from './chaos/schedule.ts';
import { requireVm } from './require-vm.ts';
import { sharedLab } from './support/test-lab.ts';

const RUN = requireVm();
const SEED = Number(process.env.SNOWFLOCK_CHAOS_SEED ?? 1);
const MINUTES = Number(process.env.SNOWFLOCK_CHAOS_MINUTES ?? 1);
const HOSTS = 4;
const CLUSTERS = 2;
/** The last round begins before the time is over, and may wait for a host to be given up, a source, a check. */
const ROUND_MAX_MS = 420_000;

describe.skipIf(!RUN)('chaos', () => {
  const lab = sharedLab({ hosts: HOSTS, cpus: 4, ramMib: 1024, hostTimeoutSeconds: 8 });

  it(
    `leaves nothing wrong and nothing behind in ${MINUTES} min with seed ${SEED}`,
    async () => {
      const random = new Random(SEED);
      const end = performance.now() + MINUTES * 60_000;
      const total = { rounds: 0, clonesRight: 0, clonesLost: 0, clustersLost: 0, callsFailed: 0 };
      await giveSmallDisks(lab());
      while (performance.now() < end) {
        const round = total.rounds + 1;
        const say = (line: string): void => console.log(`seed ${SEED} round ${round}: ${line}`);
        const plan = planRound(random, { hosts: HOSTS, clusters: CLUSTERS });
        try {
          const result = await runRound(lab(), plan, say);
          total.rounds++;
          for (const key of ['clonesRight', 'clonesLost', 'clustersLost', 'callsFailed'] as const)
            total[key] += result[key];
        } catch (error) {
          throw new Error(`chaos with seed ${SEED}, round ${round}: ${JSON.stringify(plan)}`, {
            cause: error,
          });
        }
      }
      console.log(`seed ${SEED}: ${JSON.stringify(total)}`);
    },
    MINUTES * 60_000 + ROUND_MAX_MS,
  );
});
