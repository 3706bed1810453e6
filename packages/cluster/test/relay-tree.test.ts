import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { relayPlace } from '../src/index.ts';

const forks = fc.record({
  ticket: fc.uuid(),
  parentHost: fc.constantFrom('h0', 'elsewhere'),
  targets: fc.uniqueArray(
    fc.nat(300).map((k) => `h${k}`),
    { minLength: 1, maxLength: 64 },
  ),
});

describe('relayPlace', () => {
  it('has the parent feed one host, and each host at most two; all hosts are reached, over few', () => {
    fc.assert(
      fc.property(forks, (fork) => {
        const remote = fork.targets.filter((host) => host !== fork.parentHost);
        const places = new Map(remote.map((host) => [host, relayPlace(host, fork)]));
        if (remote.length < 2) {
          expect([...places.values()].every((place) => place === null)).toBe(true);
          return;
        }
        expect([...places.values()].filter((place) => place?.via === null)).toHaveLength(1);
        for (const [host, place] of places) {
          expect(place?.feeds.length).toBeLessThanOrEqual(2);
          for (const fed of place?.feeds ?? []) expect(places.get(fed)?.via).toBe(host);
          if (typeof place?.via === 'string') expect(places.get(place.via)?.feeds).toContain(host);
          let hops = 1;
          for (let at = place; at && at.via !== null; at = places.get(at.via) ?? null) hops++;
          expect(hops).toBeLessThanOrEqual(Math.floor(Math.log2(remote.length)) + 2);
        }
      }),
    );
  });

  it('leaves out the host that the parent runs on, and who is not of the fork', () => {
    const fork = { ticket: 't', parentHost: 'h0', targets: ['h0', 'h1', 'h2'] };
    expect(relayPlace('h0', fork)).toBe(null);
    expect(relayPlace('h9', fork)).toBe(null);
    expect(
      [relayPlace('h1', fork)?.via, relayPlace('h2', fork)?.via].filter((via) => via === null),
    ).toHaveLength(1);
  });

  it('begins with another host for another ticket', () => {
    const targets = ['h1', 'h2', 'h3', 'h4'];
    const firsts = Array.from({ length: 64 }, (_, n) => {
      const fork = { ticket: `t${n}`, parentHost: 'h0', targets };
      return targets.find((host) => relayPlace(host, fork)?.via === null);
    });
    expect(new Set(firsts).size).toBe(4);
  });
});
