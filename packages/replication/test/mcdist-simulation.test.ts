// Whole forks of mcdist, simulated: whatever the network does, every page arrives, what leaves the memserver stays within a bound, and
// nobody is sent more than it takes. SNOWFLOCK_SEED=N repeats a run.

import { describe, expect, it } from 'vitest';
import { PAGE_BYTES } from '@snowflock/protocol/pages';
import { PATIENCE_MAX_MS } from '../src/mcdist/receiver.ts';
import { randomOf, simulate, type SimulationOptions } from './mcdist-simulation.ts';

const SEED = process.env['SNOWFLOCK_SEED'];
const seed = SEED === undefined ? Date.now() % 1e9 : Number(SEED);

const QUIET: SimulationOptions = {
  seed,
  hosts: 8,
  pages: 800,
  pieces: 3,
  loss: 0,
  duplicated: 0,
  reordered: 0,
  hostRate: 100e6,
  hostBufferBytes: 1e6,
  slowHosts: 0,
  deadHosts: 0,
  sameOrder: true,
  depth: 4,
};

/**
 * What may leave at most, against the pages that were asked for. Each sending to all is followed by two unicasts at most before the next
 * one, and each time only the share `lost` of those who did not have the page still does not. Slow hosts fetch all by themselves.
 */
function bound(options: SimulationOptions): number {
  const { hosts, loss, pieces, reordered, slowHosts } = options;
  const lost = 1 - (1 - loss) ** pieces + reordered / 3;
  const generations = 1 + (lost > 0 ? Math.log(hosts) / Math.log(1 / lost) : 0);
  return 1.2 + slowHosts + Math.min(1.4 * hosts * lost, 3 * generations);
}

function check(options: SimulationOptions): void {
  const what = JSON.stringify(options);
  const result = simulate(options);
  expect(result.missing, `hosts that never had all pages: ${what}`).toBe(0);
  const sent = (result.multicastBytes + result.unicastBytes) / (options.pages * PAGE_BYTES);
  expect(sent, `bytes sent against pages asked for: ${what}`).toBeLessThan(bound(options));
  expect(result.flooded / Math.max(1, result.arrived), `flooded: ${what}`).toBeLessThan(0.1);
}

describe('mcdist, simulated', () => {
  it('sends each page about once, to however many hosts', () => {
    for (const hosts of [2, 8, 32]) {
      const options = { ...QUIET, hosts, pages: 300 };
      const { multicastBytes, unicastBytes } = simulate(options);
      const sent = (multicastBytes + unicastBytes) / (options.pages * PAGE_BYTES);
      expect(sent, `${hosts} hosts, seed ${seed}`).toBeLessThan(1.05);
    }
  });

  it('is unicast for one host', () => {
    expect(simulate({ ...QUIET, hosts: 1 })).toMatchObject({ multicastBytes: 0, missing: 0 });
  });

  it('is slowed neither by slow nor by dead hosts', () => {
    const fast = simulate(QUIET).finishedMs;
    const mixed = simulate({ ...QUIET, slowHosts: 2, deadHosts: 2 }).finishedMs.slice(2);
    expect(Math.max(...mixed), `seed ${seed}`).toBeLessThan(1.3 * Math.max(...fast));
  });

  it('finds the rate of a network that is narrower than its first guess, and stays there', () => {
    const options = { ...QUIET, hosts: 4, depth: 256, pages: 2500, sameOrder: false, hostRate: 10e6 };
    const result = simulate(options);
    expect(result.flooded / result.arrived, `seed ${seed}`).toBeLessThan(0.15);
    const idealMs = (options.pages * PAGE_BYTES) / 10e3;
    // The last page of all may be lost: nothing overtakes it, so that it is waited for in vain.
    expect(Math.max(...result.finishedMs), `seed ${seed}`).toBeLessThan(1.25 * idealMs + PATIENCE_MAX_MS);
  });

  it('brings every page to 256 hosts over a network that loses a fifth', () => {
    check({ ...QUIET, hosts: 256, pages: 60, pieces: 1, loss: 0.2, reordered: 0.02, duplicated: 0.02 });
  });

  it('does so on networks that nobody has thought of', () => {
    const random = randomOf(seed);
    for (let run = 0; run < 8; run++) {
      const hosts = 2 + Math.floor(random() ** 3 * 40);
      const some = (share: number): number => Math.floor(random() * share * hosts);
      check({
        ...QUIET,
        seed: seed + run,
        hosts,
        pages: 100 + Math.floor(random() * 200),
        pieces: 1 + Math.floor(random() * 3),
        loss: random() < 0.3 ? 0 : random() * 0.2,
        duplicated: random() * 0.05,
        reordered: random() * 0.05,
        slowHosts: some(0.3),
        deadHosts: some(0.3),
        sameOrder: random() < 0.5,
        depth: 1 + Math.floor(random() * 64),
      });
    }
  });
});
