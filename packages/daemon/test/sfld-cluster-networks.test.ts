// When the network of a cluster is opened and closed on a host, with a stand-in for the network itself.

import { setTimeout as sleep } from 'node:timers/promises';
import { expect, it } from 'vitest';
import type { ClusterNetwork } from '@snowflock/network';
import { silentLog } from '../src/log.ts';
import { ClusterNetworks } from '../src/sfld/cluster-networks.ts';

function networks() {
  const events: string[] = [];
  const closing = Promise.withResolvers<void>();
  const made = new ClusterNetworks({
    localAddress: '10.0.0.1',
    log: silentLog(),
    open: async ({ clusterid }) => {
      events.push(`open ${clusterid}`);
      const close = async (): Promise<void> => {
        await closing.promise;
        events.push(`closed ${clusterid}`);
      };
      return { close } as ClusterNetwork;
    },
  });
  return { made, events, closing };
}

it('is one network for all its VMs, until the last is gone', async () => {
  const { made, events, closing } = networks();
  closing.resolve();
  expect(await made.acquire(1)).toBe(await made.acquire(1));
  await made.release(1);
  expect(events).toEqual(['open 1']);
  await made.release(1);
  expect(events).toEqual(['open 1', 'closed 1']);
});

it('is opened again only when it has been closed', async () => {
  const { made, events, closing } = networks();
  await made.acquire(1);
  const released = made.release(1);
  const again = made.acquire(1);
  await made.acquire(2);
  await sleep(10);
  expect(events).toEqual(['open 1', 'open 2']);
  closing.resolve();
  await Promise.all([released, again]);
  expect(events).toEqual(['open 1', 'open 2', 'closed 1', 'open 1']);
});
