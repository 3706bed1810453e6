// Which hosts are down, as sfmd tells it to this host.

import { expect, it } from 'vitest';
import { Peers } from '../src/sfld/peers.ts';

const NOTHING = Buffer.alloc(0);
const host = (name: string, up: boolean) => ({ host: name, address: '10.0.0.1', up });

it('ends requests to a host that went down, and lets new ones through when it is back', () => {
  using peers = new Peers({ ca: NOTHING, cert: NOTHING, key: NOTHING });
  const before = peers.downSignal('b');
  const other = peers.downSignal('a');
  peers.setHosts([host('a', true), host('b', true)]);
  expect(before.aborted).toBe(false);
  peers.setHosts([host('a', true), host('b', false)]);
  expect(before.reason).toMatchObject({ code: 'host-down', message: 'it stopped answering' });
  expect(peers.downSignal('b').aborted).toBe(true);
  peers.setHosts([host('a', true), host('b', true)]);
  expect(peers.downSignal('b').aborted).toBe(false);
  expect(before.aborted).toBe(true);
  expect(other.aborted).toBe(false);
});
