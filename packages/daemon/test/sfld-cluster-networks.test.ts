// When the network of a cluster is opened and closed on a host, with a stand-in for the network itself.

import { setTimeout as sleep } from 'node:timers/promises';
import { expect, it } from 'vitest';
import type { ClusterNetwork } from '@snowflock/network';
import { silentLog } from '../src/log.ts';
import { ClusterNetworks } from '../src/sfld/cluster-networks.ts';

function networks() {
  const events: string[] = [];
  const closing = Promise.withResolvers<void>();
  const filter = { table: null as string | null, fails: false };
  const made = new ClusterNetworks({
    localAddress: '10.0.0.1',
    log: silentLog(),
    routers: {
      start: (clusterid) => void events.push(`router of ${clusterid}`),
      end: (clusterid) => Promise.resolve(void events.push(`no router of ${clusterid}`)),
    },
    open: async ({ clusterid }) => {
      events.push(`open ${clusterid}`);
      const close = async (): Promise<void> => {
        await closing.promise;
        events.push(`closed ${clusterid}`);
      };
      const tap = (what: string) => (vm: { vmid: number }) =>
        Promise.resolve(void events.push(`${what} ${clusterid}:${vm.vmid}`));
      const taps = { attachTap: tap('attach'), removeTap: tap('remove') };
      return { close, ...taps, setPeers: () => Promise.resolve() } as unknown as ClusterNetwork;
    },
    filter: {
      apply: (hosts) => {
        if (filter.fails) return Promise.reject(new Error('nft: no'));
        filter.table = hosts.join();
        return Promise.resolve();
      },
      remove: () => {
        filter.table = null;
        return Promise.resolve();
      },
      exists: () => Promise.resolve(filter.table !== null),
    },
  });
  return { made, events, closing, filter };
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

it('has its router where its master VM is', async () => {
  const { made, events, closing } = networks();
  closing.resolve();
  await made.acquire(1);
  await made.attach({ clusterid: 1, vmid: 3 });
  await made.attach({ clusterid: 1, vmid: 0 });
  await made.detach({ clusterid: 1, vmid: 3 });
  await made.detach({ clusterid: 1, vmid: 0 });
  expect(events.slice(1)).toEqual([
    ...['attach 1:3', 'attach 1:0', 'router of 1'],
    ...['remove 1:3', 'no router of 1', 'remove 1:0'],
  ]);
});

it('brings up the tap of a VM that is paused without its router', async () => {
  const { made, events, closing } = networks();
  closing.resolve();
  await made.acquire(1);
  await made.attachTap({ clusterid: 1, vmid: 0 });
  expect(events.slice(1)).toEqual(['attach 1:0']);
  made.startRouter({ clusterid: 1, vmid: 0 });
  expect(events.slice(1)).toEqual(['attach 1:0', 'router of 1']);
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

it('lets nobody but the hosts send VXLAN while there is a network, as sfmd names them', async () => {
  const { made, closing, filter } = networks();
  closing.resolve();
  await made.setPeers(['10.0.0.1', '10.0.0.2']);
  expect(filter.table).toBeNull();
  await made.acquire(1);
  await made.acquire(2);
  expect(filter.table).toBe('10.0.0.2');
  await made.setPeers(['10.0.0.1', '10.0.0.2', '10.0.0.3']);
  expect(filter.table).toBe('10.0.0.2,10.0.0.3');
  await made.release(1);
  expect(filter.table).toBe('10.0.0.2,10.0.0.3');
  await made.release(2);
  expect(filter.table).toBeNull();
});

it('takes over the filter of an earlier sfld until sfmd has told; without one nobody may send', async () => {
  const { made, closing, filter } = networks();
  closing.resolve();
  filter.table = '10.0.0.9';
  await made.acquire(1);
  expect(filter.table).toBe('10.0.0.9');
  await made.setPeers(['10.0.0.1', '10.0.0.2']);
  expect(filter.table).toBe('10.0.0.2');
  const fresh = networks();
  await fresh.made.acquire(1);
  expect(fresh.filter.table).toBe('');
});

it('hands out no network without the filter, and tries again', async () => {
  const { made, events, closing, filter } = networks();
  closing.resolve();
  await made.setPeers(['10.0.0.2']);
  filter.fails = true;
  await expect(made.acquire(1)).rejects.toThrow('nft: no');
  expect(events).toEqual(['open 1', 'closed 1']);
  filter.fails = false;
  await made.acquire(1);
  filter.fails = true;
  await made.setPeers(['10.0.0.3']);
  expect(filter.table).toBe('10.0.0.2');
  filter.fails = false;
  await made.setPeers(['10.0.0.3']);
  expect(filter.table).toBe('10.0.0.3');
});
