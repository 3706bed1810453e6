import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import type { SystemState } from '@snowflock/protocol';
import { findSocket } from '@snowflock/sdk';
import {
  formatBytes,
  formatState,
  formatTable,
  runProgram,
  sfseedProgram,
  sfstateProgram,
  snowflockProgram,
  socketChoice,
} from '../src/index.ts';
import { formatLab } from '../src/commands/lab.ts';
import { formatChecks, runChecks } from '../src/commands/doctor.ts';
import { startFakeSfld, type FakeSfld } from '../../sdk/test/fake-sfld.ts';

const TICKET = 'd4d660b0-054e-4017-8393-ad04ff1c1ff7';
const STATE = {
  hosts: [
    {
      host: 'host1',
      address: '10.231.0.1',
      sfldPort: 49183,
      up: true,
      accel: 'tcg',
      cpus: 4,
      cpusFree: 1,
      ramBytes: 2 ** 33,
      ramFreeBytes: 2 ** 32,
      vms: 3,
    },
    {
      host: 'host2',
      address: null,
      sfldPort: null,
      up: false,
      accel: null,
      cpus: 4,
      cpusFree: 4,
      ramBytes: 2 ** 33,
      ramFreeBytes: 1.5 * 2 ** 30,
      vms: 0,
    },
  ],
  clusters: [
    {
      clusterid: 0,
      shape: { diskImage: 'debian', vcpus: 1, memoryMib: 512 },
      vms: [
        {
          vmid: 0,
          status: 'running',
          host: 'host1',
          vcpus: 1,
          memoryMib: 512,
          ip: '10.0.0.1',
          ticket: null,
          reason: null,
        },
        {
          vmid: 1,
          status: 'lost',
          host: 'host1',
          vcpus: 1,
          memoryMib: 512,
          ip: '10.0.0.2',
          ticket: TICKET,
          reason: 'QEMU died of SIGKILL',
        },
      ],
      tickets: [
        {
          ticket: TICKET,
          owner: 0,
          status: 'outstanding',
          clones: [{ vmid: 1, processors: 1, host: 'host1' }],
        },
      ],
    },
  ],
} as unknown as SystemState;

describe('which sfld', () => {
  it('is that of the lab, when none runs on this machine itself', () => {
    const lab = '/run/snowflock/lab-lab/host-1/run/sfld.sock';
    const exists = (path: string): boolean => path === lab;
    expect(findSocket({ ...socketChoice({}), env: undefined, exists })).toBe(lab);
    expect(findSocket({ ...socketChoice({ socket: '/a' }), exists })).toBe('/a');
  });
});

describe('tables', () => {
  it('are as wide as their contents, and no wider than the terminal', () => {
    const columns = [{ title: 'A' }, { title: 'NUMBER', align: 'right' as const }, { title: 'TEXT' }];
    expect(
      formatTable(columns, [
        ['long cell', '7', ''],
        ['x', '1234567', 'y'],
      ]),
    ).toEqual(['A           NUMBER  TEXT', 'long cell        7', 'x          1234567  y']);
    const narrow = formatTable(columns, [['x'.repeat(60), '7', 'y'.repeat(50)]], { width: 40 });
    for (const line of narrow) expect(line.length).toBeLessThanOrEqual(40);
    expect(narrow[1]).toMatch(/x…/);
    expect(formatTable(columns, [], { width: 3 })).toEqual(['A  NUMBER  TEXT']);
  });

  it('write sizes shortly', () => {
    expect([0, 1023, 2 ** 20, 1.5 * 2 ** 30, 2 ** 43].map(formatBytes)).toEqual([
      '0B',
      '1023B',
      '1M',
      '1.5G',
      '8T',
    ]);
  });

  it('show the state of a system', () => {
    expect(formatState(STATE)).toBe(`HOST   ADDRESS     STATE  ACCEL  CPUS FREE  RAM FREE  VMS
host1  10.231.0.1  up     tcg          1/4     4G/8G    3
host2  -           down   -            4/4   1.5G/8G    0

cluster 0: debian, 1 VCPU, 512M each
  VM   STATE    HOST   VCPUS  MEMORY  IP        TICKET                                REASON
  0:0  running  host1      1    512M  10.0.0.1  -
  0:1  lost     host1      1    512M  10.0.0.2  ${TICKET}  QEMU died of SIGKILL

  TICKET                                STATE        OWNER  CLONES (VMID@HOST)
  ${TICKET}  outstanding  0:0    1@host1
`);
    for (const line of formatState(STATE, { width: 60 }).split('\n'))
      expect(line.length).toBeLessThanOrEqual(72);
    expect(formatState({ ...STATE, clusters: [] })).toMatch(/no clusters; sfseed CFGFILE starts one/);
  });

  it('show what clones have fetched, where it is known', () => {
    const waits = {
      count: 250,
      minUs: 90,
      medianUs: 210,
      p99Us: 3100,
      maxUs: 4000,
      sumUs: 81_240,
      buckets: [],
    };
    const clusters = STATE.clusters.map((cluster) => ({
      ...cluster,
      vms: cluster.vms.map((vm) => (vm.vmid === 1 ? { ...vm, fetched: { bytes: 3 * 2 ** 20, waits } } : vm)),
    }));
    expect(formatState({ ...STATE, clusters })).toContain(`
  CLONE  FETCHED  WAITS   WAITED  MEDIAN    99 %
  0:1         3M    250  81.2 ms  0.2 ms  3.1 ms
`);
  });

  it('show a lab', () => {
    const lab = { name: 'x', problem: null, cpus: null, ramBytes: null, hosts: [] };
    expect(formatLab({ ...lab, status: 'none' })).toMatch(/there is no lab 'x'/);
    expect(formatLab({ ...lab, status: 'broken', problem: 'sfmd is dead' })).toMatch(
      /NOT WHOLE: sfmd is dead.*lab down/,
    );
  });
});

describe('doctor', () => {
  it('reports a check that throws as failed', async () => {
    const results = await runChecks([
      { name: 'good', run: async () => ({ status: 'ok', found: 'fine', advice: '' }) },
      { name: 'bad', run: () => Promise.reject(new Error('bang')) },
    ]);
    expect(results.map(({ status }) => status)).toEqual(['ok', 'fail']);
    expect(formatChecks(results)).toMatch(
      /^ok {4}good {2}fine\nfail {2}bad {3}bang\n +→ this check itself failed\n\n1 failed/,
    );
  });
});

describe('commands', () => {
  let fake: FakeSfld;
  let dir: string;
  let stdout = '';
  let stderr = '';
  beforeEach(async () => {
    fake = await startFakeSfld();
    dir = await mkdtemp('/tmp/sfcmd-');
    stdout = stderr = '';
    vi.spyOn(process.stdout, 'write').mockImplementation((text) => ((stdout += String(text)), true));
    vi.spyOn(process.stderr, 'write').mockImplementation((text) => ((stderr += String(text)), true));
  });
  afterEach(async () => {
    vi.restoreAllMocks();
    await fake[Symbol.asyncDispose]();
    await rm(dir, { recursive: true, force: true });
  });
  const socket = (): string[] => ['--socket', fake.socketPath];

  it('sfseed prints the tuple of the manual', async () => {
    await writeFile(join(dir, 'seed.cfg'), 'disk_image = "debian" # an image\nvcpus = 1\nmemory = 2*128\n');
    const reply = { clusterid: 2, vmid: 0, host: 'host1', ip: '10.0.0.1' };
    fake.replies.set('POST /v1/master/clusters', { status: 200, body: reply });
    expect(await runProgram(sfseedProgram(), [join(dir, 'seed.cfg'), ...socket()])).toBe(0);
    expect(stdout).toBe("(2, '10.0.0.1')\n");
    expect(fake.requests).toEqual([
      'POST /v1/master/clusters {"diskImage":"debian","vcpus":1,"memoryMib":256}',
    ]);
  });

  it('sfseed refuses a file with code in it, and passes on what sfmd says', async () => {
    await writeFile(
      join(dir, 'bad.cfg'),
      'disk_image = open("/etc/passwd").read()\nvcpus = 1\nmemory = 256\n',
    );
    expect(await runProgram(sfseedProgram(), [join(dir, 'bad.cfg'), ...socket()])).toBe(1);
    expect(stderr).toMatch(/^sfseed: .*bad\.cfg:1:\d+.*\n$/);
    expect(fake.requests).toEqual([]);
    await writeFile(join(dir, 'seed.cfg'), 'disk_image = "debian"\nvcpus = 1\nmemory = 256\n');
    const error = { code: 'no-resources', message: 'no host has 256 MiB free' };
    fake.replies.set('POST /v1/master/clusters', { status: 409, body: { error } });
    stderr = '';
    expect(await runProgram(sfseedProgram(), [join(dir, 'seed.cfg'), ...socket()])).toBe(1);
    expect(stderr).toBe('sfseed: no host has 256 MiB free\n');
  });

  it('sfstate prints a table, or JSON', async () => {
    fake.replies.set('GET /v1/master/state', { status: 200, body: STATE });
    expect(await runProgram(sfstateProgram(), socket())).toBe(0);
    expect(stdout).toBe(formatState(STATE));
    stdout = '';
    await runProgram(sfstateProgram(), ['--json', ...socket()]);
    expect(JSON.parse(stdout)).toMatchObject({ clusters: [{ clusterid: 0 }] });
  });

  it('shutdown asks sfmd, and fails as it does', async () => {
    fake.replies.set('DELETE /v1/master/clusters/3?force=1', { status: 204, body: undefined });
    expect(await runProgram(snowflockProgram(), ['shutdown', '3', '--force', ...socket()])).toBe(0);
    expect(await runProgram(snowflockProgram(), ['shutdown', '4', ...socket()])).toBe(1);
    expect(stderr).toBe('snowflock: no such thing here\n');
  });

  it('exec ends with the exit status of the command in the guest', async () => {
    const args = ['exec', ...socket(), '0:1', '--', 'sh', '-c', 'echo out; exit 9', '--help'];
    vi.spyOn(process, 'stdin', 'get').mockReturnValue(
      (await import('node:stream')).Readable.from([]) as never,
    );
    vi.spyOn(process.stdout, 'write').mockImplementation(((text: string, done?: () => void) => {
      stdout += String(text);
      done?.();
      return true;
    }) as never);
    expect(await runProgram(snowflockProgram(), args)).toBe(9);
    expect(stdout).toBe('out\n');
  });

  it.each([
    [['exec', '0:1'], /missing required argument 'cmd'/],
    [['exec'], /missing required argument 'vm'/],
    [['frobnicate'], /unknown command 'frobnicate'/],
    [['lab', 'up', '--hosts', 'many'], /--hosts.*whole number/],
    [['lab', 'up', '--ram', 'lots'], /--ram.*512M or 8G/],
    [['shutdown', 'x'], /clusterid/],
    [['image', 'build', 'windows'], /no image of that name; there are/],
  ])('%j is wrong usage: one line and status 2', async (args, message) => {
    expect(await runProgram(snowflockProgram(), args)).toBe(2);
    expect(stderr).toMatch(message);
    expect(stderr).toMatch(/^snowflock: [^\n]*--help[^\n]*\n$/);
  });

  it.each([
    [['exec', '0-1', '--', 'true'], /'0-1' does not name a VM; write CLUSTERID:VMID/],
    [['exec', '9:9', '--', 'true'], /there is no VM 9:9/],
    [['cp', 'a', 'b'], /one of SRC and DST must be in a VM/],
    [['cp', '0:1:/a', '0:2:/b'], /one of SRC and DST must be in a VM/],
    [['console', '9:9'], /there is no VM 9:9/],
  ])('%j fails with one line and status 1', async (args, message) => {
    const [command = '', ...rest] = args;
    expect(await runProgram(snowflockProgram(), [command, ...socket(), ...rest])).toBe(1);
    expect(stderr).toMatch(message);
    expect(stderr).toMatch(/^snowflock: [^\n]*\n$/);
  });

  it('has help everywhere', async () => {
    for (const args of [
      [],
      ['exec'],
      ['cp'],
      ['console'],
      ['shutdown'],
      ['image'],
      ['image', 'build'],
      ['lab'],
      ['lab', 'up'],
      ['doctor'],
    ]) {
      stdout = '';
      expect(await runProgram(snowflockProgram(), [...args, '--help'])).toBe(0);
      expect(stdout).toMatch(/^Usage: snowflock/);
    }
  });
});
