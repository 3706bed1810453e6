import fc from 'fast-check';
import { CLUSTERID_MAX, VMID_MAX } from '@snowflock/protocol';
import { describe, expect, it } from 'vitest';
import {
  addTapCommands,
  attachTapCommands,
  bridgeName,
  diffPeers,
  floodPeers,
  guardTapRules,
  openCommands,
  parseLinkName,
  peerCommands,
  tapMac,
  tapName,
  toolArgv,
  unguardTapRules,
  vxlanFilterRules,
  vni,
  vxlanName,
} from '../src/index.ts';

const IFNAMSIZ_MAX = 15;
const clusterids = fc.integer({ min: 0, max: CLUSTERID_MAX });
const vmids = fc.integer({ min: 0, max: VMID_MAX });

describe('device names', () => {
  it('fit and lead back to their ids, for all ids', () => {
    fc.assert(
      fc.property(clusterids, vmids, (clusterid, vmid) => {
        const names = [bridgeName(clusterid), vxlanName(clusterid), tapName({ clusterid, vmid })];
        for (const name of names) expect(name.length).toBeLessThanOrEqual(IFNAMSIZ_MAX);
        expect(names.map(parseLinkName)).toEqual([
          { kind: 'bridge', clusterid },
          { kind: 'vxlan', clusterid },
          { kind: 'tap', clusterid, vmid },
        ]);
      }),
    );
    expect(tapName({ clusterid: CLUSTERID_MAX, vmid: VMID_MAX })).toBe('sft9zldq-1ekc');
    expect(vni(CLUSTERID_MAX)).toBe(0xffffff);
  });

  it('never mistake a foreign device for ours', () => {
    for (const name of [
      'eth0',
      'sfb',
      'sfbx',
      'br0',
      'sfv99999999',
      'sft1',
      'sft-1',
      'sftzzzzz-0',
      'sft0-zzzz',
      'lo',
    ])
      expect(parseLinkName(name), name).toBeUndefined();
  });

  it('refuse ids out of range', () => {
    expect(() => bridgeName(-1)).toThrow(/clusterid -1 is out of range/);
    expect(() => vxlanName(CLUSTERID_MAX + 1)).toThrow(/out of range/);
    expect(() => tapName({ clusterid: 0, vmid: VMID_MAX + 1 })).toThrow(/vmid/);
    expect(() => tapName({ clusterid: 0, vmid: 1.5 })).toThrow(/vmid/);
  });

  it("give the host's end of a tap an address that is never the guest's", () => {
    expect(tapMac({ clusterid: 0x010203, vmid: 0x0405 })).toBe('fe:01:02:03:04:05');
  });
});

describe('opening a cluster network', () => {
  it('makes a bridge and a VXLAN device without a host address', () => {
    expect(openCommands({ clusterid: 7, localAddress: '10.231.0.1' })).toEqual([
      'link add name sfb7 type bridge stp_state 0 forward_delay 0 mcast_snooping 0',
      'link add name sfv7 type vxlan id 8 local 10.231.0.1 dstport 4789 learning',
      'link set dev sfb7 mtu 1450 addrgenmode none',
      'link set dev sfv7 mtu 1450 addrgenmode none',
      'link set dev sfv7 master sfb7',
      'link set dev sfv7 up',
      'link set dev sfb7 up',
    ]);
  });

  it('adopts what an earlier daemon left', () => {
    const commands = openCommands({
      clusterid: 7,
      localAddress: '10.231.0.1',
      have: new Set(['sfb7', 'sfv7']),
    });
    expect(commands.filter((command) => command.startsWith('link add'))).toEqual([]);
  });

  it('takes no text into a command that is not an address', () => {
    expect(() => openCommands({ clusterid: 7, localAddress: '10.0.0.1 up' })).toThrow(/not an IPv4 address/);
    expect(() =>
      diffPeers({ have: new Set(), want: ['x\nlink del lo'], localAddress: '10.0.0.1' }),
    ).toThrow();
    expect(() => addTapCommands({ clusterid: 0, vmid: 0, mac: 'fe:00 up' })).toThrow(/MAC/);
  });
});

describe('taps', () => {
  it('are made on the bridge but down, and attached in one command', () => {
    expect(addTapCommands({ clusterid: 7, vmid: 36 })).toEqual([
      'tuntap add dev sft7-10 mode tap vnet_hdr',
      'link set dev sft7-10 mtu 1450 addrgenmode none address fe:00:00:07:00:24 master sfb7',
    ]);
    expect(attachTapCommands({ clusterid: 7, vmid: 36 })).toEqual(['link set dev sft7-10 master sfb7 up']);
  });
});

describe('the flood list', () => {
  it('is read from the kernel', () => {
    const fdb = [
      { mac: 'b6:32:7a:ab:38:8f', flags: [], master: 'sfb0', state: 'permanent' },
      { mac: '00:00:00:00:00:00', dst: '10.1.1.1', flags: ['self'], state: 'permanent' },
      { mac: '52:00:00:00:00:01', dst: '10.1.1.2', flags: ['self'] },
    ];
    expect(floodPeers(fdb)).toEqual(new Set(['10.1.1.1']));
    expect(floodPeers({})).toEqual(new Set());
  });

  it('changes by the difference only, without the own address', () => {
    const change = diffPeers({
      have: new Set(['10.0.0.2', '10.0.0.3']),
      want: ['10.0.0.1', '10.0.0.3', '10.0.0.4', '10.0.0.4'],
      localAddress: '10.0.0.1',
    });
    expect(change).toEqual({ add: ['10.0.0.4'], remove: ['10.0.0.2'] });
    expect(peerCommands(0, change)).toEqual([
      'fdb del 00:00:00:00:00:00 dev sfv0 dst 10.0.0.2',
      'fdb append 00:00:00:00:00:00 dev sfv0 dst 10.0.0.4',
    ]);
  });

  it('reaches any list from any other', () => {
    const address = fc.integer({ min: 1, max: 9 }).map((n) => `10.0.0.${n}`);
    fc.assert(
      fc.property(fc.uniqueArray(address), fc.array(address), (have, want) => {
        const kernel = new Set(have);
        const change = diffPeers({ have: kernel, want, localAddress: '10.0.0.1' });
        for (const peer of change.remove) expect(kernel.delete(peer)).toBe(true);
        for (const peer of change.add) kernel.add(peer);
        expect(kernel).toEqual(new Set(want.filter((peer) => peer !== '10.0.0.1')));
      }),
    );
  });
});

describe('the filter of VXLAN', () => {
  it('replaces its table by one with the hosts, without the own address', () => {
    const rules = vxlanFilterRules({
      hosts: ['10.0.0.3', '10.0.0.1', '10.0.0.2', '10.0.0.2'],
      localAddress: '10.0.0.1',
    });
    expect(rules.split('\n').map((line) => line.trim())).toEqual([
      'add table ip snowflock_vxlan',
      'delete table ip snowflock_vxlan',
      'table ip snowflock_vxlan {',
      'set hosts { type ipv4_addr; elements = { 10.0.0.2, 10.0.0.3 }; }',
      'chain input {',
      'type filter hook input priority filter - 10; policy accept;',
      'udp dport 4789 ip saddr != @hosts counter drop',
      ...['}', '}', ''],
    ]);
    expect(vxlanFilterRules({ hosts: [], localAddress: '10.0.0.1' })).toContain('{ type ipv4_addr; }');
    expect(() => vxlanFilterRules({ hosts: ['10.0.0.2 }; x'], localAddress: '10.0.0.1' })).toThrow(
      /not an IPv4/,
    );
  });
});

describe('tools', () => {
  it('act in a namespace when one is named', () => {
    expect(toolArgv('ip', ['link'])).toEqual(['ip', 'link']);
    expect(toolArgv('bridge', ['fdb'], 'x')).toEqual(['bridge', '-n', 'x', 'fdb']);
    expect(toolArgv('nft', ['-f', '-'], 'x')).toEqual(['ip', 'netns', 'exec', 'x', 'nft', '-f', '-']);
  });
});

describe('the guard of taps', () => {
  it("names a VM's own addresses, and drops the rest", () => {
    const rules = guardTapRules([{ clusterid: 1, vmid: 41 }]).split('\n');
    const chain = rules.filter((rule) => rule.startsWith('add rule bridge snowflock_taps sft1-15 '));
    expect(chain[0]).toMatch(/ ether saddr != 52:00:00:01:00:29 drop$/);
    expect(chain.join('\n')).toContain('ip saddr 10.0.0.42 accept');
    expect(chain.join('\n')).toContain('@th,64,128 != 0xfd536e6f77660000000000000000002a drop');
    expect(chain.at(-1)).toMatch(/ drop$/);
  });

  it('has a chain for each, with a target address of 128 bits whatever the vmid is', () => {
    fc.assert(
      fc.property(clusterids, vmids, (clusterid, vmid) => {
        const rules = guardTapRules([{ clusterid, vmid }]);
        expect(rules).toMatch(/@th,64,128 != 0xfd[0-9a-f]{30} drop/);
        expect(rules).toContain(
          `{ "${tapName({ clusterid, vmid })}" : jump ${tapName({ clusterid, vmid })} }`,
        );
      }),
    );
  });

  it('makes what it removes, so that removing twice is no error', () => {
    const rules = unguardTapRules(['sft0-1'])
      .split('\n')
      .filter((rule) => rule.includes('sft0-1'));
    expect(rules.map((rule) => rule.split(' ').slice(0, 2).join(' '))).toEqual([
      'add chain',
      'add element',
      'delete element',
      'flush chain',
      'delete chain',
    ]);
  });
});
