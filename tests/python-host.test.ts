// Python's domain 0 API against a played sfld, and its reading of a seed's configuration against TypeScript's.

import { execFile } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { afterAll, afterEach, beforeEach, describe, expect, it } from 'vitest';
import { parseSeedConfig, SnowflockError } from '@snowflock/protocol';
import { haveTools } from '../guest/image/test/needs.ts';
import { startFakeSfld, type FakeSfld } from '../packages/sdk/test/fake-sfld.ts';

const PYTHONPATH = join(import.meta.dirname, '../guest/python');
const dir = mkdtempSync(join(tmpdir(), 'sf-python-'));
afterAll(() => rmSync(dir, { recursive: true }));
const run = promisify(execFile);

async function python(code: string, env: Record<string, string> = {}): Promise<string> {
  const { stdout } = await run('python3', ['-c', code], {
    cwd: dir,
    env: { PATH: process.env.PATH, PYTHONPATH, PYTHONDONTWRITEBYTECODE: '1', ...env },
  });
  return stdout.trimEnd();
}

const GOOD = [
  'disk_image = "debian"\nvcpus = 1\nmemory = 256\n',
  "# a comment\nmemory = 64*(1<<2) # so much\n\nvcpus = 0x2\ndisk_image = 'micro'\n",
  'disk_image = "/images/a.img"\nvcpus = 7 // 2\nmemory = 2**8 | 1',
  'disk_image = "../a.img"\r\nvcpus = -1 + 3\r\nmemory = 1_000\r\n',
  'disk_image = "d\\x65bian"\nvcpus = (1)\nmemory = ~-257\n',
];
/** Each is wrong beside the other two settings. */
const WRONG_VCPUS = [
  ...[
    '',
    'x = 1',
    'import os',
    'vcpus = 1\nvcpus = 1',
    'vcpus = 1\ndisk_image = 3',
    'vcpus = "1"',
    'vcpus = True',
  ],
  ...['vcpus = 1 // 0', 'vcpus = 2 ** 99', 'vcpus = 2 ** 2 ** 2 ** 2 ** 2', 'vcpus = 1 << 1000000000'],
  ...['vcpus = open("/etc/passwd")', 'vcpus = [1]', 'vcpus = 1 if 1 else 2', 'vcpus += 1', 'vcpus = "a" * 3'],
  ...['vcpus = (', 'vcpus = 1 vcpus = 2', 'vcpus = 1\0'],
];
const TEXTS = [...GOOD, ...WRONG_VCPUS.map((line) => `disk_image = "micro"\nmemory = 64\n${line}\n`)];

describe.skipIf(!haveTools('python3'))("Python's domain 0 API", () => {
  it('reads the configuration of a seed as sfseed does', async () => {
    const read = `
import json, sys
from snowflock import SnowflockError
from snowflock._seedconfig import read_seed_config
for text in json.load(open("texts.json")):
    with open("seed.cfg", "w", newline="") as file: file.write(text)
    try: print(json.dumps(read_seed_config("seed.cfg")))
    except SnowflockError as error: print(json.dumps(error.code))
`;
    const typescript = TEXTS.map((text) => {
      try {
        return parseSeedConfig(text, join(dir, 'seed.cfg'));
      } catch (error) {
        return error instanceof SnowflockError ? error.code : String(error);
      }
    });
    expect(typescript.filter((each) => each !== 'bad-config').length).toBe(GOOD.length);
    writeFileSync(join(dir, 'texts.json'), JSON.stringify(TEXTS));
    const found = (await python(read)).split('\n').map((line) => JSON.parse(line) as unknown);
    for (const [at, text] of TEXTS.entries()) expect([text, found[at]]).toEqual([text, typescript[at]]);
  });

  it.each([
    ['on a host', {}, 'dump_cluster_state dump_host_state sf_seed'],
    ['in a VM', { SNOWFLOCK_AGENT_SOCKET: '/agent.sock' }, 'clone_master request_vm_ticket whoami'],
  ])('is what import snowflock gives %s', async (_where, env, names) => {
    const code = `import snowflock; print(all(hasattr(snowflock, name) for name in "${names}".split()), hasattr(snowflock, "sf_seed"), hasattr(snowflock, "clone_master"))`;
    const onHost = names.includes('sf_seed');
    expect(await python(code, env)).toBe(`True ${onHost ? 'True False' : 'False True'}`);
    expect(await python('import snowflock.dom0api, snowflock.domUapi; print("both")', env)).toBe('both');
  });

  describe('with an sfld', () => {
    let fake: FakeSfld;
    beforeEach(async () => void (fake = await startFakeSfld()));
    afterEach(() => fake[Symbol.asyncDispose]());
    const asked = (code: string): Promise<string> =>
      python(
        `import snowflock\ntry: print(${code})\nexcept snowflock.SnowflockError as error: print(error)`,
        { SNOWFLOCK_SOCKET: fake.socketPath },
      );

    it('starts and ends clusters', async () => {
      fake.replies.set('POST /v1/master/clusters', {
        status: 200,
        body: { clusterid: 2, vmid: 0, host: 'host1', ip: '10.0.0.1' },
      });
      fake.replies.set('DELETE /v1/master/clusters/2?force=1', { status: 204, body: undefined });
      writeFileSync(join(dir, 'good.cfg'), GOOD[0] ?? '');
      expect(await asked('tuple(snowflock.sf_seed("good.cfg"))')).toBe("(2, '10.0.0.1')");
      expect(await asked('snowflock.shutdown(2, force=True)')).toBe('None');
      expect(fake.requests).toEqual([
        'POST /v1/master/clusters {"diskImage": "debian", "vcpus": 1, "memoryMib": 256}',
        'DELETE /v1/master/clusters/2?force=1',
      ]);
    });

    it('says what went wrong, with the codes of everywhere', async () => {
      expect(await asked('snowflock.shutdown(3)')).toBe('no-such-cluster: no such thing here');
      expect(await asked('snowflock.shutdown("3")')).toMatch(/^bad-request: /);
      expect(await asked('snowflock.sf_seed("nowhere.cfg")')).toMatch(/^bad-config: .*nowhere.cfg/);
      fake.replies.set('GET /v1/master/state', { status: 500, body: { unexpected: true } });
      expect(await asked('snowflock.dump_host_state()')).toMatch(/^unavailable: GET \/state: status 500/);
      const missing = await python(
        'import snowflock\ntry: snowflock.dump_host_state()\nexcept snowflock.SnowflockError as e: print(e)',
        { SNOWFLOCK_SOCKET: '/nowhere' },
      );
      expect(missing).toMatch(/^unavailable: cannot ask the sfld at \/nowhere: .*sfld start/);
    });
  });
});
