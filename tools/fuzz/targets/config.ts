// The configuration parser: whatever a file holds, the answer is a configuration or FILE:LINE:COLUMN: message.

import { parseSeedConfig, parseSfldConfig, parseSfmdConfig, SnowflockError } from '@snowflock/protocol';
import type { Target } from '../engine.ts';

const FILE = 'f.cfg';

export const target: Target = {
  name: 'config',
  seeds: [
    'disk_image = "debian"\nvcpus = 1\nmemory = 256\n',
    "hostname = 'host2'\nmaster_host = 'host1'\nmaster_port = 0xF10C\naccel = 'tcg'\n",
    "cluster_hosts = [\n {'host': ['a', 'b'], 'cpus': 2, 'RAM': 2*(1<<30)},\n]\nnetwork_whitelist = ['10.1.0.0/16']\nbandwidth_cap = 20 # c\n",
  ],
  dictionary: [
    ...[
      'cluster_hosts',
      "'host'",
      "'cpus'",
      "'RAM'",
      'network_mode',
      "'multicast'",
      'hostname',
      'address',
      'True',
      'None',
    ],
    ...[
      '**',
      '//',
      '<<',
      '>>',
      '0x',
      '0b1',
      '1_0',
      '\\x41',
      '\\u0041',
      "'''",
      '(',
      ')',
      '[',
      ']',
      '{',
      '}',
      ',',
      ':',
      '#',
      '\n',
    ],
    ...['9007199254740991', '-', '~', '%', 'lambda:0', '__import__("os")', '\r\n', '\ufeff', '\0'],
  ],
  run(input) {
    const text = input.toString('utf8');
    for (const parse of [parseSeedConfig, parseSfldConfig, parseSfmdConfig])
      try {
        parse(text, FILE);
      } catch (error) {
        if (!(error instanceof SnowflockError) || error.code !== 'bad-config') throw error;
        if (!error.message.startsWith(FILE))
          throw new Error(`an error that names no place: ${error.message}`);
      }
  },
};
