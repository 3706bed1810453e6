import { describe, expect, it } from 'vitest';
import { parseSfldConfig, parseSfmdConfig } from '@snowflock/protocol';
import { hostsFile, sfldConfig, sfmdConfig } from '../src/config.ts';
import { formatSize, hostSocket, parseSize } from '../src/index.ts';
import { checkLabName, isLabNetns } from '../src/names.ts';
import { dropRules, rateArgs, topologyCommands } from '../src/topology.ts';

describe('sizes', () => {
  it.each([
    ['8G', 8 * 2 ** 30],
    ['512M', 512 * 2 ** 20],
    ['1.5GiB', 1.5 * 2 ** 30],
    ['64kb', 65536],
    ['1048576', 1048576],
  ])('reads %s', (text, bytes) => expect(parseSize(text)).toBe(bytes));

  it.each(['', 'G', '8X', '-1G', '0', '1e9', '8 G B', '99999999999T'])('refuses %j', (text) =>
    expect(() => parseSize(text)).toThrow(/is not a size; write for example/),
  );

  it.each(['8G', '512M', '1.5G', '64K', '100'])('writes %s as it was read', (text) =>
    expect(formatSize(parseSize(text))).toBe(text),
  );
});

describe('names', () => {
  it('are plain', () => {
    expect(checkLabName('demo-2')).toBe('demo-2');
    for (const bad of ['', '-a', 'a-', 'A', 'a/b', '../x', 'a'.repeat(25), '1a'])
      expect(() => checkLabName(bad), bad).toThrow(/cannot be the name of a lab/);
  });

  it("tell this lab's namespaces from another's", () => {
    expect(isLabNetns('a', 'sf-a-sw')).toBe(true);
    expect(isLabNetns('a', 'sf-a-12')).toBe(true);
    for (const other of ['sf-b-1', 'sf-a-1-1', 'sf-a-b-sw', 'a', 'sf-a-'])
      expect(isLabNetns('a', other)).toBe(false);
  });

  it('refuse a state folder that no unix socket fits in', () => {
    process.env.SNOWFLOCK_LAB_DIR = `/tmp/${'x'.repeat(100)}`;
    try {
      expect(() => hostSocket('lab', 1)).toThrow(/too long for a unix socket/);
    } finally {
      delete process.env.SNOWFLOCK_LAB_DIR;
    }
  });
});

describe('the network', () => {
  it('is a switch and one cable per host, in namespaces only', () => {
    const batches = topologyCommands({ name: 'x', hosts: 2 });
    expect(batches.map(({ netns }) => netns)).toEqual([undefined, undefined, 'sf-x-sw', 'sf-x-1', 'sf-x-2']);
    expect(batches[1]?.commands).toEqual([
      'link add name h1 netns sf-x-sw type veth peer name eth0 netns sf-x-1',
      'link add name h2 netns sf-x-sw type veth peer name eth0 netns sf-x-2',
    ]);
    expect(batches[4]?.commands).toContain('addr add 10.231.0.2/24 dev eth0');
  });

  it('is shaped by rules that replace earlier ones', () => {
    expect(rateArgs('h1', 0.5).join(' ')).toBe(
      'qdisc replace dev h1 root tbf rate 500kbit burst 131072 latency 50ms',
    );
    expect(rateArgs('h1', undefined).join(' ')).toBe('qdisc del dev h1 root');
    expect(dropRules('h1', 2.5)).toMatch(/numgen random mod 10000 < 250 drop/);
    expect(dropRules('h1', 2.5)).toMatch(/^table netdev sflab-h1\ndelete table netdev sflab-h1\n/);
    expect(dropRules('h1', 100)).toMatch(/accept;\n\s*drop\n/);
    expect(dropRules('h1', 0)).not.toMatch(/drop/);
  });
});

describe('configuration files', () => {
  it('are what the daemons read', () => {
    const sfld = parseSfldConfig(sfldConfig({ name: 'x', k: 2 }), 'sfld.cfg');
    expect(sfld).toMatchObject({
      hostname: 'host2',
      address: '10.231.0.2',
      masterHost: '10.231.0.1',
      runDir: '/run/snowflock/lab-x/host-2/run',
      tlsKey: '/run/snowflock/lab-x/host-2/tls/host.key',
    });
    const sfmd = parseSfmdConfig(sfmdConfig({ name: 'x', hosts: 3, cpus: 2, ramBytes: 2 ** 33 }), 'sfmd.cfg');
    expect(sfmd.masterListenPort).toBe(sfld.masterPort);
    expect(sfmd.listenAddress).toBe('10.231.0.1');
    expect(sfmd.authorityDir).toBe('/run/snowflock/lab-x/authority');
    expect(sfmd.tlsCert).toBe('/run/snowflock/lab-x/host-1/tls/sfmd.crt');
    expect(sfmd.clusterHosts.map(({ host, cpus, ramBytes }) => [host, cpus, ramBytes])).toEqual([
      ['host1', 2, 2 ** 33],
      ['host2', 2, 2 ** 33],
      ['host3', 2, 2 ** 33],
    ]);
    expect(hostsFile(2)).toMatch(/^10\.231\.0\.2 host2$/m);
  });
});
