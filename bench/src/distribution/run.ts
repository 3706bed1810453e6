// npm run bench -- distribution: what leaves the parent when clones on many hosts read its memory, by each way there is to send it and over
// links of several speeds; the same guest moved and copied by what one did before; BLAST over clones; what memtap and memserver cost. Parts can be run by
// themselves: --only takes the beginning of a part's name ('cases/unicast/unlimited/32', 'peers', 'warm', 'blast/ideal', 'loop', 'resources'), any number of times.

import { buildImage } from '@snowflock/image';
import { chooseAccel } from '@snowflock/vm';
import { machine, type BenchResult, type Figure } from '../figures.ts';
import { measureBlast } from './blast.ts';
import { caseName, HOSTS, LINKS, measureCases, VARIANTS } from './cases.ts';
import { measureLoop } from './loop.ts';
import { measurePeers } from './peers.ts';
import { measureResources } from './resources.ts';
import { ratioOf } from './ratios.ts';
import { measureWarm } from './warm.ts';

export async function benchDistribution(options: {
  quick: boolean;
  only: readonly string[];
  signal: AbortSignal;
}): Promise<BenchResult> {
  const { quick, only, signal } = options;
  const wanted = (part: string) => (name: string) =>
    only.length === 0 || only.some((start) => `${part}/${name}`.startsWith(start));
  const accel = (await chooseAccel('auto')).chosen;
  // an older one's programs may not know the job
  await buildImage('micro', { signal });
  const figures: Figure[] = [];
  figures.push(...(await measureCases({ quick, wanted: wanted('cases'), signal })));
  figures.push(...(await measurePeers({ quick, accel, wanted: wanted('peers'), signal })));
  figures.push(...(await measureWarm({ quick, wanted: wanted('warm'), signal })));
  figures.push(...(await measureBlast({ quick, accel, wanted: wanted('blast'), signal })));
  if (wanted('loop')('')) figures.push(...(await measureLoop({ quick, signal })));
  if (wanted('resources')('')) figures.push(...(await measureResources({ quick, signal })));
  if (figures.length === 0) throw new Error(`no part's name begins with '${only.join("' or '")}'`);
  return { bench: 'distribution', machine: machine(accel), figures: [...figures, ...ratios(figures)] };
}

/** Each variant against the first; 32 clones against one on each host. */
function ratios(figures: readonly Figure[]): Figure[] {
  const found: (Figure | undefined)[] = [];
  const [first] = VARIANTS;
  for (const link of LINKS)
    for (const variant of VARIANTS) {
      for (const clones of [1, 2, 4, 8, 16, 32])
        if (first && variant !== first)
          for (const name of ['bytes-leaving-parent', 'job', 'stall-of-clone'])
            found.push(
              ratioOf(figures, name, caseName(variant, link, clones), caseName(first, link, clones)),
            );
      for (const name of ['bytes-leaving-parent', 'job', 'stall-of-clone'])
        found.push(ratioOf(figures, name, caseName(variant, link, 32), caseName(variant, link, HOSTS)));
    }
  return found.filter((one) => one !== undefined);
}
