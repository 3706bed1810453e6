import { setTimeout as sleep } from 'node:timers/promises';
import type { TryMulticast } from '@snowflock/protocol';
import { afterEach, describe, expect, it } from 'vitest';
import { PageWays } from '../src/sfmd/page-ways.ts';
import { silentLog } from '../src/log.ts';

const HOSTS = ['a', 'b', 'c', 'd', 'e'];
const addressOf = (host: string) => ({ host, address: host, sfldPort: 1 });

describe('how pages go', () => {
  let closing = new AbortController();
  afterEach(() => {
    closing.abort();
    closing = new AbortController();
  });

  /** With 'auto', over a network whose hosts hear so much; those without a number do not answer. */
  function ways(heard: Readonly<Record<string, number>>, mode: 'auto' | 'unicast' | 'relay' = 'auto') {
    const asked: (TryMulticast & { host: string })[] = [];
    const found = new PageWays({
      mode,
      multicastHosts: new Map(HOSTS.map((host) => [host, `${host}.fast`])),
      hosts: {
        tryMulticast: async ({ host }, body) => {
          asked.push({ host, ...body });
          const packetBytes = heard[host];
          if (packetBytes === undefined) throw new Error('it does not answer');
          return { packetBytes };
        },
      },
      addressOf,
      log: silentLog(),
      closing: closing.signal,
    });
    return { found, asked };
  }
  const tried = async (found: PageWays): Promise<void> =>
    void (await expect.poll(() => found.heard.size, { timeout: 5000 }).toBe(HOSTS.length));
  const to = (...targets: string[]) => ({ parentHost: 'a', targets });

  it('is multicast where all of a fork hear it, relay to many that do not, else unicast', async () => {
    const { found, asked } = ways({ a: 1500, b: 1500, c: 1500, d: 0 });
    expect(found.of(to('b', 'c'))).toBe('unicast'); // nothing is known yet
    found.noteUp(HOSTS);
    await tried(found);
    expect(found.of(to('a', 'b', 'c'))).toBe('multicast');
    expect(found.of(to('a', 'b'))).toBe('unicast');
    expect(found.of(to('b', 'c', 'd'))).toBe('unicast');
    expect(found.of(to('b', 'c', 'd', 'e'))).toBe('relay');
    expect(asked.filter(({ sends }) => sends)).toMatchObject([{ host: 'a', multicastHost: 'a.fast' }]);
    expect(new Set(asked.map(({ keyHex }) => keyHex)).size).toBe(1);
  });

  it('is tried anew when a host comes, and only then', async () => {
    const { found, asked } = ways({ a: 1500, b: 1500, c: 1500, d: 1500, e: 1500 });
    found.noteUp(HOSTS.slice(1));
    await expect.poll(() => found.heard.size, { timeout: 5000 }).toBe(HOSTS.length - 1);
    expect(found.of(to('b', 'c'))).toBe('unicast');
    found.noteUp(HOSTS);
    await tried(found);
    expect(found.of(to('b', 'c'))).toBe('multicast');
    const count = asked.length;
    found.noteUp([...HOSTS].reverse());
    await sleep(1500);
    expect(asked).toHaveLength(count);
  });

  it('is as configured where it is configured', async () => {
    const { found, asked } = ways({}, 'relay');
    found.noteUp(HOSTS);
    await sleep(1500);
    expect(found.of(to('b'))).toBe('relay');
    expect(asked).toEqual([]);
  });
});
