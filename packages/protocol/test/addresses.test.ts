import * as fc from 'fast-check';
import { expect, it } from 'vitest';
import {
  formatVmRef,
  guestHostname,
  guestIp,
  guestIp6,
  guestMac,
  parseVmRef,
  ROUTER_IP,
  routerMac,
} from '../src/index.ts';

it.each([
  [0, '10.0.0.1'],
  [1, '10.0.0.2'],
  [254, '10.0.0.255'],
  [255, '10.0.1.0'],
  [256, '10.0.1.1'],
  [65532, '10.0.255.253'],
])('vmid %i has the address %s', (vmid, ip) => expect(guestIp(vmid)).toBe(ip));

it('keeps the address after the last VM for the router', () => {
  expect(ROUTER_IP).toBe('10.0.255.254');
  expect(routerMac(0x010203)).toBe('52:01:02:03:ff:fe');
  expect(() => guestIp(65533)).toThrow(/65533/);
});

it('gives IPv6 addresses by the same number', () => {
  expect(guestIp6(0)).toBe('fd53:6e6f:7766::1');
  expect(guestIp6(65532)).toBe('fd53:6e6f:7766::fffd');
});

it('gives every VM of every cluster its own MAC address, unicast and locally administered', () => {
  expect(guestMac({ clusterid: 0x010203, vmid: 0x0405 })).toBe('52:01:02:03:04:05');
  expect(guestHostname({ clusterid: 3, vmid: 4 })).toBe('sf-3-4');
  const ref = fc.record({
    clusterid: fc.integer({ min: 0, max: 0xfffffe }),
    vmid: fc.integer({ min: 0, max: 65532 }),
  });
  fc.assert(
    fc.property(ref, ref, (a, b) => {
      expect(guestMac(a) === guestMac(b)).toBe(a.clusterid === b.clusterid && a.vmid === b.vmid);
      expect(Number.parseInt(guestMac(a).slice(0, 2), 16) & 3).toBe(2);
      expect(parseVmRef(formatVmRef(a))).toEqual(a);
    }),
  );
});

it.each(['', '0', '0:', ':1', '0:1:2', '0:-1', 'a:1', '0:65533', ' 0:1', '0:1\n'])(
  '%j names no VM',
  (text) => {
    expect(() => parseVmRef(text)).toThrow();
  },
);
