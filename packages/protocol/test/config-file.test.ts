import * as fc from 'fast-check';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import {
  parseConfigText,
  parseSeedConfig,
  parseSfldConfig,
  parseSfmdConfig,
  readSeedConfig,
  SnowflockError,
  type ConfigValue,
} from '../src/index.ts';

const value = (text: string): ConfigValue | undefined =>
  parseConfigText(`x = ${text}\n`, 'f').get('x')?.value;
const messageOf = (work: () => unknown): string => {
  try {
    return `no error: ${JSON.stringify(work())}`;
  } catch (error) {
    if (!(error instanceof SnowflockError)) throw error;
    return `${error.code} ${error.message}`;
  }
};

describe('values', () => {
  it.each<[string, ConfigValue]>([
    ['256', 256],
    ['0xF10C', 0xf10c],
    ['0o17 + 0b101', 20],
    ['1_000_000', 1_000_000],
    ['2*(1<<30)', 2 ** 31],
    ['3*(2**30)', 3 * 2 ** 30],
    ['0xDEAD-0xBEEF', 0xdead - 0xbeef],
    ['-7 // 2', -4],
    ['-7 % 3', 2],
    ['7 % -3', -2],
    ['-2 ** 2', -4],
    ['2 ** 3 ** 2', 512],
    ['2 ** -0', 1],
    ['~0 & 0xff | 1 << 8 ^ 3', (~0 & 0xff) | ((1 << 8) ^ 3)],
    ['-1 >> 1000', -1],
    ['1 + 2 * 3 - 4', 3],
    ["'single \\'quoted\\' \\x41\\u00e9\\n'", "single 'quoted' Aé\n"],
    ['"double # no comment"', 'double # no comment'],
    ['True', true],
    ['[False, None,]', [false, null]],
    ['()', []],
    ['(1)', 1],
    ['(1,)', [1]],
    ['{\'a\': [1, (2, 3)], "b": {},}', { a: [1, [2, 3]], b: {} }],
    ['[ # comment\n 1,\n\n 2 # more\n]', [1, 2]],
  ])('%s', (text, expected) => expect(value(text)).toEqual(expected));

  it('has line and column of each setting, and tolerates CRLF, a byte order mark and a missing last newline', () => {
    const entries = parseConfigText('\ufeff# header\r\n\r\na = 1\r\nb = "x"', 'f');
    expect([...entries].map(([name, { value: v, line, column }]) => [name, v, line, column])).toEqual([
      ['a', 1, 3, 1],
      ['b', 'x', 4, 1],
    ]);
  });

  it('keeps names such as __proto__ as data', () => {
    const dict = value("{'__proto__': {'polluted': 1}}") as Record<string, unknown>;
    expect(Object.keys(dict)).toEqual(['__proto__']);
    expect(({} as Record<string, unknown>)['polluted']).toBeUndefined();
  });
});

describe('errors', () => {
  it.each([
    [
      'import os',
      'f:1:1: this is not a setting; a line must be NAME = VALUE (the file is read, never executed)',
    ],
    [
      'x = __import__("os").system("id")',
      "f:1:5: '__import__(' looks like a call, and nothing here is executed; allowed are",
    ],
    ['x = open', "f:1:5: 'open' is a name, not a value; allowed are"],
    ['x += 1', 'f:1:1: this is not a setting'],
    ['x == 1', 'f:1:1: this is not a setting'],
    ['if True:\n  x = 1', 'f:1:1: this is not a setting'],
    ['  x = 1', "f:1:3: 'x' is indented"],
    ['x = 1\nx = 2', "f:2:1: 'x' is set twice, first in line 1"],
    ['x = 1.5', "f:1:5: '1.5' is not a whole number"],
    ['x = 1e3', "f:1:5: '1e3' is not a whole number"],
    ['x = 017', "f:1:5: '017' begins with 0; for an octal number write 0o17"],
    ['x = 12ab', "f:1:5: '12ab' is not a number"],
    ['x = 4 / 2', "f:1:7: '/' is not allowed; for integer division write //"],
    ['x = 1 // 0', 'f:1:7: division by zero'],
    ['x = 2 ** 9999999999', "f:1:7: the result of '**' is too large"],
    ['x = 1 << 9007199254740991', "f:1:7: the result of '<<' is too large"],
    ['x = 1 << -1', 'f:1:7: a shift cannot be negative'],
    ['x = 9007199254740992', 'f:1:5: 9007199254740992 is too large'],
    ['x = 9007199254740991 + 1', "f:1:22: the result of '+' is too large"],
    ['x = "a" + "b"', "f:1:9: '+' works on integers only"],
    ['x = -True', "f:1:5: '-' works on integers only"],
    ['x = "abc', 'f:1:5: this string has no closing " on its line'],
    ['x = """abc"""', 'f:1:5: triple-quoted strings are not allowed'],
    ['x = "\\q"', 'f:1:6: unknown escape'],
    ["x = f'{1}'", 'f:1:5: string prefixes are not allowed'],
    ['x = "a" "b"', "f:1:9: unexpected the string 'b' after the value of 'x'"],
    ['x = a[0]', "f:1:5: 'a' is a name"],
    ['x = [1][0]', "f:1:8: unexpected '[' after the value of 'x'; indexing and calls are not allowed"],
    ['x = [y for y in (1, 2)]', "f:1:6: 'y' is a name"],
    ['x = [1 for y in (1, 2)]', "f:1:8: ',' or ']' is missing before 'for'; allowed are"],
    ['x = [1,\n  2', "f:1:5: '[' is never closed"],
    ['x = [1,\ny = 2', "f:1:5: '[' is not closed before 'y =' in line 2"],
    ['x = [1\ny = 2', "f:1:5: '[' is not closed before 'y =' in line 2"],
    ["x = {\n 'host' : ['a', 'b']\n 'cpus' : 3\n}", "f:3:2: ',' or '}' is missing before the string 'cpus'"],
    ["x = {'a': 1, 'a': 2}", "f:1:14: 'a' stands twice in this dictionary"],
    ['x = {1: 2}', 'f:1:6: the keys of a dictionary are strings in quotes'],
    ["x = {'a' 1}", "f:1:10: ':' is missing after 'a'"],
    ['x = {1, 2}', 'f:1:6: the keys of a dictionary are strings in quotes'],
    ['x =', 'f:1:4: a value is missing before the end of the line; allowed are'],
    ['x = 1; y = 2', "f:1:6: ';' is not allowed; write each setting on its own line"],
    ['x = 1 + \\\n 2', 'f:1:9: a line cannot be continued with \\'],
    ['x = \u00e9', 'f:1:5: character U+00e9 is not allowed here'],
    ['x = 1, 2', "f:1:6: unexpected ',' after the value of 'x'"],
    [`x = ${'['.repeat(40)}`, 'f:1:37: nested deeper than 32'],
    [`x = ${'-'.repeat(40)}1`, 'f:1:37: nested deeper than 32'],
    [`x = 2${'**1'.repeat(40)}`, 'nested deeper than 32'],
  ])('%s', (text, expected) => {
    const message = messageOf(() => parseConfigText(text, 'f'));
    expect(message).toContain('bad-config ');
    expect(message).toContain(expected);
  });
});

describe('properties', () => {
  const python = (data: ConfigValue): string => {
    if (data === null) return 'None';
    if (typeof data === 'boolean') return data ? 'True' : 'False';
    if (typeof data === 'number') return String(data);
    if (typeof data === 'string')
      return `'${[...data].map((char) => (/[A-Za-z0-9 ]/.test(char) ? char : [...char].flatMap((c) => Array.from({ length: c.length }, (_, i) => `\\u${c.charCodeAt(i).toString(16).padStart(4, '0')}`)).join(''))).join('')}'`;
    if (Array.isArray(data)) return `[${data.map(python).join(', ')}]`;
    return `{${Object.entries(data)
      .map(([key, each]) => `${python(key)}: ${python(each)}`)
      .join(', ')}}`;
  };
  const { tree } = fc.letrec<{ tree: ConfigValue }>((tie) => ({
    tree: fc.oneof(
      { depthSize: 'small', withCrossShrink: true },
      fc.constantFrom(null, true, false),
      fc.maxSafeInteger(),
      fc.string({ unit: 'binary' }),
      fc.array(tie('tree'), { maxLength: 4 }),
      fc.dictionary(fc.string({ minLength: 1 }), tie('tree'), { maxKeys: 4, noNullPrototype: false }),
    ),
  }));

  it('reads back whatever literal was written', () => {
    fc.assert(fc.property(tree, (data) => void expect(value(python(data))).toEqual(data)));
  });

  it('ends quickly with a value or bad-config, whatever the text', () => {
    const words = fc.constantFrom(
      'x',
      '=',
      '\n',
      '[',
      ']',
      '(',
      ')',
      '{',
      '}',
      ',',
      ':',
      '**',
      '<<',
      '-',
      '9',
      '0x',
      '"',
      "'",
      '\\',
      '#',
      'None',
      'import',
      ' ',
      '~',
      '9007199254740991',
      '.',
      '/',
    );
    const soup = fc.oneof(
      fc.string({ unit: 'binary', maxLength: 200 }),
      fc.array(words, { maxLength: 80 }).map((each) => `x = ${each.join('')}`),
    );
    fc.assert(
      fc.property(soup, (text) => {
        try {
          for (const entry of parseConfigText(text, 'f').values()) expect(entry.line).toBeGreaterThan(0);
        } catch (error) {
          expect(error).toBeInstanceOf(SnowflockError);
          expect((error as SnowflockError).message).toMatch(/^f:\d+:\d+: /);
        }
      }),
      { numRuns: 3000 },
    );
  });

  it('agrees with BigInt about arithmetic', () => {
    const small = fc.integer({ min: -1000, max: 1000 });
    fc.assert(
      fc.property(small, small, small, (a, b, c) => {
        expect(value(`${a} + ${b} * ${c} - (${a} - ${c})`)).toBe(a + b * c - (a - c));
        if (b !== 0) expect(value(`${a} // ${b} * ${b} + ${a} % ${b}`)).toBe(a);
        if (b !== 0) expect(value(`${a} // ${b}`)).toBe(Math.floor(a / b) + 0);
      }),
    );
  });

  it('is linear in hostile input', () => {
    const before = process.threadCpuUsage();
    expect(messageOf(() => value('+1'.repeat(200_000)))).toContain('no error');
    expect(messageOf(() => value('['.repeat(500_000)))).toContain('nested deeper');
    expect(messageOf(() => value(`[${'1,'.repeat(200_000)}]`))).toContain('no error');
    expect(messageOf(() => value('1'.repeat(900_000)))).toContain('too long');
    const { user, system } = process.threadCpuUsage(before);
    expect((user + system) / 1000).toBeLessThan(5000);
  });
});

describe('sfseed', () => {
  const dir = mkdtempSync(join(tmpdir(), 'snowflock-config-'));
  afterAll(() => rmSync(dir, { recursive: true }));
  const seed = (text: string): string => messageOf(() => parseSeedConfig(text, '/etc/s/seed.cfg'));

  it('reads the example of the manual', () => {
    const text =
      'disk_image = "/path/to/vm.img" #pointing to the file containing the VM disk image\nvcpus = 1\nmemory = 256\n';
    expect(parseSeedConfig(text, 'f')).toEqual({ diskImage: '/path/to/vm.img', vcpus: 1, memoryMib: 256 });
  });

  it('reads the name of a checkpoint in place of an image', () => {
    expect(parseSeedConfig("# disk_image\ncheckpoint = 'warm'\n", 'f')).toEqual({ checkpoint: 'warm' });
  });

  it('resolves paths against the file and leaves image names alone', () => {
    writeFileSync(join(dir, 'seed.cfg'), "disk_image = './vm.img'\nvcpus = 1\nmemory = 1 << 8\n");
    expect(readSeedConfig(join(dir, 'seed.cfg'))).toMatchObject({ diskImage: join(dir, 'vm.img') });
    expect(parseSeedConfig("disk_image = 'micro'\nvcpus = 1\nmemory = 64", 'f')).toMatchObject({
      diskImage: 'micro',
    });
  });

  it.each([
    ["disk_image = 'micro'\nvcpus = 1", "/etc/s/seed.cfg: missing 'memory'; see docs/configuration.md"],
    ['', "missing 'disk_image', 'vcpus', 'memory'"],
    ["checkpoint = 'warm'\nvcpus = 1", "/etc/s/seed.cfg:2:1: unknown setting 'vcpus'"],
    ["checkpoint = '../warm'", '/etc/s/seed.cfg:1:14: checkpoint: must be up to 64 letters'],
    [
      "disk_image = 'micro'\nvcpu = 1\nmemory = 64",
      "/etc/s/seed.cfg:2:1: unknown setting 'vcpu'; did you mean 'vcpus'?",
    ],
    ["disk_image = 'micro'\nvcpus = 0\nmemory = 64", '/etc/s/seed.cfg:2:9: vcpus: must be at least 1'],
    ["disk_image = 'micro'\nvcpus = '1'\nmemory = 64", '/etc/s/seed.cfg:2:9: vcpus: must be an integer'],
    ["disk_image = 'micro'\nvcpus = True\nmemory = 64", 'vcpus: must be an integer'],
    ["disk_image = 'micro'\nvcpus = 1\nmemory = 16", 'memory: must be at least 32: MiB'],
    ["disk_image = '..'\nvcpus = 1\nmemory = 64", 'must be a path (with'],
    ["disk_image = ''\nvcpus = 1\nmemory = 64", 'must not be empty'],
  ])('refuses %j', (text, expected) => expect(seed(text)).toContain(expected));

  it('says what is wrong with the file itself', () => {
    expect(messageOf(() => readSeedConfig(join(dir, 'none.cfg')))).toContain('there is no such file');
    expect(messageOf(() => readSeedConfig(dir))).toContain('is not a file');
    writeFileSync(join(dir, 'binary.cfg'), Buffer.from([0xff, 0xfe, 0x00]));
    expect(messageOf(() => readSeedConfig(join(dir, 'binary.cfg')))).toContain('not UTF-8');
    writeFileSync(join(dir, 'huge.cfg'), Buffer.alloc((1 << 20) + 1, 0x20));
    expect(messageOf(() => readSeedConfig(join(dir, 'huge.cfg')))).toContain('at most 1048576');
  });
});

describe('sfld and sfmd', () => {
  it('fills in the defaults of the manual', () => {
    expect(
      parseSfldConfig("hostname = 'host1'\nmaster_host = '10.0.0.1'", '/etc/snowflock/sfld.cfg'),
    ).toEqual({
      hostname: 'host1',
      masterHost: '10.0.0.1',
      masterPort: 0xf10c,
      localListenPort: 0xc01f,
      resultLimits: { cloneBytes: 16 << 20, ticketBytes: 256 << 20 },
      accel: 'auto',
      address: null,
      stateDir: '/var/lib/snowflock',
      runDir: '/run/snowflock',
      socketGroup: null,
      httpLimits: { connections: 4096, connectionsPerPeer: 1024, requests: 4096, requestsPerPeer: 1024 },
      tlsCa: '/etc/snowflock/tls/ca.crt',
      tlsCert: '/etc/snowflock/tls/host.crt',
      tlsKey: '/etc/snowflock/tls/host.key',
    });
    expect(parseSfldConfig("hostname = '10.0.0.7'\nmaster_host = 'm'", 'f').address).toBe('10.0.0.7');
  });

  it('reads the example of the manual (with its missing bracket and commas put right)', () => {
    const text = `master_listen_port = 0xF10C
cluster_hosts = [ # start of list
     {'host': 'host1.mynet', 'cpus': 2, 'RAM' : 2*(1<<30)},
     {'host': ['host2.mynet', 'host2.mcast'], 'cpus': 2, 'RAM' : 3*(2**30)},
]# end of list
network_mode = 'unicast'
detach_clones = 'always'
push_pages = 'never'
compress_pages = 'never'
network_whitelist = ['www.example.org', '10.1.0.0/16', '192.0.2.7',]
bandwidth_cap = 20
clusterid = 2000
run_dir = 'run'
`;
    expect(parseSfmdConfig(text, '/etc/snowflock/sfmd.cfg')).toMatchObject({
      clusterid: 2000,
      masterListenPort: 0xf10c,
      listenAddress: '0.0.0.0',
      clusterHosts: [
        { host: 'host1.mynet', multicastHost: 'host1.mynet', cpus: 2, ramBytes: 2 ** 31 },
        { host: 'host2.mynet', multicastHost: 'host2.mcast', cpus: 2, ramBytes: 3 * 2 ** 30 },
      ],
      networkMode: 'unicast',
      detachClones: true,
      pushPages: false,
      compressPages: false,
      networkNameservers: [],
      networkWhitelist: ['www.example.org', '10.1.0.0/16', '192.0.2.7'],
      bandwidthCap: 20,
      runDir: '/etc/snowflock/run',
    });
  });

  const host = "{'host': 'a', 'cpus': 2, 'RAM': 1<<30}";
  it.each([
    ['', "f: missing 'cluster_hosts'"],
    ['cluster_hosts = []', 'f:1:17: cluster_hosts: must name at least one host'],
    [`cluster_hosts = [${host}, ${host}]`, "cluster_hosts[1].host: 'a' is listed twice"],
    [
      "cluster_hosts = [\n  {'host': 'a', 'cpus': 2, 'RAM': 256}]",
      'f:2:35: cluster_hosts[0].RAM: must be at least 33554432: bytes',
    ],
    [
      "cluster_hosts = [\n  {'host': 'a', 'cpus': 2}]",
      "f:2:3: cluster_hosts[0]: 'RAM' is missing in this dictionary",
    ],
    [
      "cluster_hosts = [\n  {'host': 'a', 'cpus': 2, 'ram': 1<<30}]",
      "f:2:35: cluster_hosts[0].ram: unknown key; did you mean 'RAM'?",
    ],
    [
      "cluster_hosts = [{'host': ['a'], 'cpus': 2, 'RAM': 1<<30}]",
      "must be one host name, or a list ['unicast', 'multicast']",
    ],
    ["cluster_hosts = ['a']", "f:1:18: cluster_hosts[0]: must be a dictionary with 'host', 'cpus' and 'RAM'"],
    [
      `cluster_hosts = [${host}]\ndetach_clones = 1`,
      "f:2:17: detach_clones: must be one of 'never', 'always'",
    ],
    [
      `cluster_hosts = [${host}]\nnetwork_mode = 'broadcast'`,
      "f:2:16: network_mode: must be one of 'multicast', 'unicast', 'relay', 'auto'",
    ],
    [
      `cluster_hosts = [${host}]\nnetwork_whitelist = ['10.0.0.0/99']`,
      'f:2:22: network_whitelist[0]: must be an address',
    ],
    [
      `cluster_hosts = [${host}]\nmaster_listen_port = 70000`,
      'master_listen_port: must be at most 65535: a TCP port',
    ],
    [`cluster_hosts = [${host}]\n__proto__ = 1`, "f:2:1: unknown setting '__proto__'"],
  ])('refuses %j', (text, expected) =>
    expect(messageOf(() => parseSfmdConfig(text, 'f'))).toContain(expected),
  );
});
