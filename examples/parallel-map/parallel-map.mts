// A parallel map over clones of this VM, in TypeScript: counts the primes below LIMIT.
//
//     npm link snowflock                    once, in a VM of our images
//     node parallel-map.mts CLONES LIMIT    Node 22.18 or later runs it as it is

import * as snowflock from 'snowflock';

/** What `work` gives for each item, by up to `nclones` clones. What a lost clone did not finish is done here. */
export async function parallelMap<T, R>(
  work: (item: T) => R,
  items: readonly T[],
  nclones: number,
): Promise<R[]> {
  const { ticket } = await snowflock.requestCloneTicket(nclones, { min: 1 });
  if (ticket === null) throw new Error('no clones were granted');
  const vmids = (await snowflock.readTicketInfo(ticket)).map(({ vmid }) => vmid);
  const shareOf = (vmid: number): T[] =>
    items.filter((_item, at) => at % vmids.length === vmids.indexOf(vmid));
  const { vmid } = await snowflock.cloneMaster(ticket); // resolves here, and in every clone
  if (vmid !== 0) {
    const result = Buffer.from(JSON.stringify(shareOf(vmid).map(work)));
    await snowflock.icExit({ result });
  }
  const outcomes = await snowflock.join(ticket);
  const results = new Array<R>(items.length);
  for (const [turn, id] of vmids.entries()) {
    const outcome = outcomes.get(id);
    const share =
      outcome?.how === 'exited' ? (JSON.parse(outcome.result.toString()) as R[]) : shareOf(id).map(work);
    for (const [at, value] of share.entries()) results[turn + at * vmids.length] = value;
  }
  return results;
}

function countPrimes([first, last]: readonly [number, number]): number {
  let count = 0;
  for (let n = Math.max(2, first); n < last; n += 1) {
    let d = 2;
    while (d * d <= n && n % d !== 0) d += 1;
    if (d * d > n) count += 1;
  }
  return count;
}

const [nclones = 1, limit = 0] = process.argv.slice(2).map(Number);
const step = Math.max(1, Math.floor(limit / (8 * nclones)));
const ranges: [number, number][] = [];
for (let first = 0; first < limit; first += step) ranges.push([first, Math.min(first + step, limit)]);
const counts = await parallelMap(countPrimes, ranges, nclones);
console.log(JSON.stringify({ primes: counts.reduce((sum, each) => sum + each, 0), ranges: ranges.length }));
