// The commands as people start them, through bin/, against a lab with the real daemons and a real guest.

import { spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { findLeftovers, Lab } from '@snowflock/lab';
import { SystemState } from '@snowflock/protocol';
import { requireVm } from '../../../tests/require-vm.ts';

const RUN = requireVm();
const BIN = join(import.meta.dirname, '../../../bin');
const NAME = `cli${process.pid}`;
const COMMAND_TIMEOUT_MS = 100_000;

describe.skipIf(!RUN)('host commands on a lab', () => {
  let lab: Lab;
  let dir = '';

  function run(
    command: string,
    args: string[],
    input: string | Buffer = '',
  ): Promise<{ status: number | null; out: string; err: string }> {
    const env = { ...process.env, SNOWFLOCK_SOCKET: lab.hosts[0]?.socketPath };
    const child = spawn(join(BIN, command), args, { env, timeout: COMMAND_TIMEOUT_MS });
    child.stdin.on('error', () => undefined);
    child.stdin.end(input);
    const status = new Promise<number | null>((resolve) => child.once('close', resolve));
    return Promise.all([status, text(child.stdout), text(child.stderr)]).then(([s, out, err]) => ({
      status: s,
      out,
      err,
    }));
  }

  beforeAll(async () => {
    dir = mkdtempSync('/tmp/sfhost-');
    process.env.SNOWFLOCK_LAB_DIR = dir;
    lab = await Lab.up({ name: NAME, hosts: 2, cpus: 2, ramBytes: 2 ** 30 });
  });
  afterAll(async () => {
    await lab?.down();
    expect(await findLeftovers(NAME)).toEqual([]);
    delete process.env.SNOWFLOCK_LAB_DIR;
    rmSync(dir, { recursive: true, force: true });
  });

  it('seed a VM, run commands in it, copy, show it, and shut it down', async () => {
    const config = join(dir, 'seed.cfg');
    writeFileSync(config, 'disk_image = "micro"\nvcpus = 1\nmemory = 128\n');
    expect(await run('sfseed', [config])).toMatchObject({ status: 0, out: "(0, '10.0.0.1')\n", err: '' });

    const script = 'cat; hostname >&2; exit 5';
    const answer = await run('snowflock', ['exec', '0:0', '--', 'sh', '-c', script], 'input');
    expect(answer).toEqual({ status: 5, out: 'input', err: 'sf-0-0\n' });

    const data = Buffer.alloc(1_500_000, 'snowflock ');
    writeFileSync(join(dir, 'data'), data, { mode: 0o640 });
    expect(await run('snowflock', ['cp', join(dir, 'data'), '0:0:/tmp'])).toEqual({
      status: 0,
      out: '',
      err: '',
    });
    expect(await run('snowflock', ['cp', '0:0:/tmp/data', join(dir, 'back')])).toEqual({
      status: 0,
      out: '',
      err: '',
    });
    expect(readFileSync(join(dir, 'back')).equals(data)).toBe(true);
    expect(await run('snowflock', ['cp', '0:0:/nope', dir])).toMatchObject({
      status: 1,
      err: expect.stringMatching(/nope: no such file/) as unknown,
    });

    const { out } = await run('sfstate', ['--json']);
    const state = SystemState.parse(JSON.parse(out));
    expect(state.clusters[0]?.vms).toMatchObject([{ vmid: 0, status: 'running', ip: '10.0.0.1' }]);
    expect((await run('sfstate', [])).out).toMatch(/cluster 0: micro, 1 VCPU, 128M each/);
    expect((await run('snowflock', ['console', '0:0'], 'echo $((6*7))\n')).out).toMatch(/42/);

    expect(await run('snowflock', ['shutdown', '0'])).toEqual({ status: 0, out: '', err: '' });
    const gone = await run('snowflock', ['exec', '--wait', '5', '0:0', '--', 'true']);
    expect(gone).toMatchObject({ status: 1, err: expect.stringMatching(/^snowflock: [^\n]+\n$/) as unknown });
  });

  it('fail with one clear line', async () => {
    const config = join(dir, 'big.cfg');
    writeFileSync(config, 'disk_image = "micro"\nvcpus = 1\nmemory = 1024*900\n');
    expect(await run('sfseed', [config])).toMatchObject({
      status: 1,
      out: '',
      err: expect.stringMatching(/^sfseed: [^\n]+\n$/) as unknown,
    });
    writeFileSync(config, 'disk_image = "/no/such.img"\nvcpus = 1\nmemory = 128\n');
    expect(await run('sfseed', [config])).toMatchObject({
      status: 1,
      out: '',
      err: expect.stringMatching(/^sfseed: .*\/no\/such\.img.*\n$/) as unknown,
    });
  });

  it('lab down takes a running VM with it', async () => {
    const config = join(dir, 'seed.cfg');
    expect((await run('sfseed', [config])).status).toBe(0);
    expect(await run('snowflock', ['lab', 'down', '--name', NAME])).toEqual({
      status: 0,
      out: `lab '${NAME}' is down\n`,
      err: '',
    });
    expect(await lab.leftovers()).toEqual([]);
    expect((await run('snowflock', ['lab', 'down', '--name', NAME])).out).toMatch(/nothing to do/);
  });
});
