// The images in real VMs under software emulation.

import { beforeAll, describe, expect, it } from 'vitest';
import { buildImage, type ImageManifest } from '../src/index.ts';
import { testIdentity } from './host-side.ts';
import { haveTools } from './needs.ts';
import { TestVm, type TestVmOptions } from './vm.ts';

const able =
  haveTools('qemu-system-x86_64', 'gcc', 'make', 'mke2fs', 'mmdebstrap') && process.getuid?.() === 0;
const T = '11111111-2222-3333-4444-555555555555';

async function bootWithIdentity(image: ImageManifest, options: TestVmOptions = {}): Promise<TestVm> {
  const vm = await TestVm.boot(image, { network: true, ...options });
  console.log(`${image.name}: ${vm.bootMs} ms from QEMU's start to HELLO`);
  vm.host.send('identity', 0, testIdentity());
  await vm.host.next('identified', 20_000, 0);
  return vm;
}

describe.skipIf(!able)('micro', () => {
  let image: ImageManifest;
  beforeAll(async () => {
    image = await buildImage('micro');
  });

  it('boots, takes its identity, runs commands', async () => {
    await using vm = await bootWithIdentity(image);
    const { stdout } = await vm.host.exec([
      'sh',
      '-c',
      'hostname; ip -4 addr show eth0; cat /sys/class/net/eth0/address; date +%s',
    ]);
    expect(stdout).toMatch(/^master\n/);
    expect(stdout).toContain('mtu 1400');
    expect(stdout).toContain('inet 10.0.0.1/24');
    expect(stdout).toContain('52:54:00:00:00:01');
    expect(Math.abs(Number(stdout.trim().split('\n').at(-1)) - Date.now() / 1000)).toBeLessThan(5);
    expect(await vm.host.exec(['sh', '-c', 'echo no >&2; exit 3'])).toEqual({
      status: 3,
      stdout: '',
      stderr: 'no\n',
    });
    const scratch = await vm.host.exec([
      'sh',
      '-c',
      'echo kept > /disk/file && cat /disk/file && df -m /disk | tail -n 1',
    ]);
    expect(scratch.stdout).toMatch(/^kept\n\/dev\/vda/);
    expect((await vm.host.exec(['/usr/lib/snowflock/sfrandom', '8'])).stdout).toMatch(/^[0-9a-f]{16}\n$/);
  });

  it.each([1, 2, 3])('holds its %i CPUs from HELD to IDENTITY and wakes as a clone', async (cpus) => {
    await using vm = await bootWithIdentity(image, { cpus });
    await vm.host.exec(['ip', 'route', 'add', 'default', 'via', '10.0.0.254']);
    const gap = vm.host.startExec(['/usr/lib/snowflock/sfgap', '0']);
    vm.host.startExec(['sh', '-c', `sfdoclone ${T} > /run/said`]);
    const call = await vm.host.nextCall();
    expect(call.text).toBe(`clone_master ${T}`);
    // The largest gap so far is asked away, so that the next answer tells of the hold alone.
    vm.host.send('execIn', gap, '\n');
    await vm.host.next('execOut', 15_000, gap);
    vm.host.send('hold', call.id);
    await vm.host.next('held', 15_000, call.id);
    await new Promise((resolve) => setTimeout(resolve, 400));
    const sent = performance.now();
    vm.host.send(
      'identity',
      call.id,
      testIdentity({ vmid: 3, nclones: 3, hostname: 'clone3', ip: '10.0.0.4', mac: '52:54:00:00:00:04' }),
    );
    await vm.host.next('identified', 15_000, call.id);
    console.log(
      `micro, ${cpus} CPUs: ${(performance.now() - sent).toFixed(1)} ms from IDENTITY to IDENTIFIED`,
    );
    const { stdout } = await vm.host.exec([
      'sh',
      '-c',
      'while ! [ -s /run/said ]; do sleep 0.1; done; cat /run/said; hostname; ip -4 addr show eth0; cat /sys/class/net/eth0/address; ' +
        'ip route; cat /run/snowflock/identity; pidof sfgap',
    ]);
    expect(stdout).toMatch(/^I am clone 3 \(cloned VM\)\.\nclone3\n/);
    expect(stdout).toContain('inet 10.0.0.4/24');
    expect(stdout).not.toContain('10.0.0.1/');
    expect(stdout).toContain('52:54:00:00:00:04');
    expect(stdout).toContain('default via 10.0.0.254 dev eth0');
    expect(stdout).toContain('vmid=3\nnclones=3\nhostname=clone3\n');
    // The master's session is forgotten here, but its process goes on.
    expect(stdout.trim()).toMatch(/\n\d+$/);
  });

  it('lets no other process run between HELD and IDENTITY', async () => {
    await using vm = await bootWithIdentity(image, { cpus: 2 });
    const gap = vm.host.startExec(['/usr/lib/snowflock/sfgap', '0']);
    vm.host.startExec(['sh', '-c', `sfdoclone ${T}`]);
    const call = await vm.host.nextCall();
    vm.host.send('execIn', gap, '\n');
    await vm.host.next('execOut', 15_000, gap);
    vm.host.send('hold', call.id);
    await vm.host.next('held', 15_000, call.id);
    await new Promise((resolve) => setTimeout(resolve, 500));
    vm.host.send('identity', call.id, testIdentity({ nclones: 1 }));
    vm.host.send('reply', call.id, 'ok 1 0');
    vm.host.send('execIn', gap, '\n');
    const us = Number((await vm.host.next('execOut', 15_000, gap)).payload.subarray(1).toString());
    expect(us).toBeGreaterThan(490_000);
    expect(us).toBeLessThan(20_000_000);
  });

  it('forks its test programs', async () => {
    await using vm = await bootWithIdentity(image);
    const id = vm.host.startExec(['/usr/lib/snowflock/sfmemtest', '--writer', '16', '77']);
    expect((await vm.host.next('execOut', 20_000, id)).payload.subarray(1).toString()).toBe('filled\n');
    vm.host.send('execIn', id, 'clone 1\n');
    const request = await vm.host.nextCall();
    vm.host.send('reply', request.id, `ok 1 ${T}`);
    const call = await vm.host.nextCall();
    vm.host.send('reply', call.id, 'ok 1 2'); // as if in a clone
    const wait = 'until [ -f /run/sfmemtest.2 ]; do sleep 0.1; done; cat /run/sfmemtest.2';
    expect((await vm.host.exec(['sh', '-c', wait])).stdout).toBe('2 wrong=0 pages=4096 torn=0\n');
  });

  it('boots in 96 MiB', async () => {
    await using vm = await bootWithIdentity(image, { memoryMib: 96 });
    expect((await vm.host.exec(['true'])).status).toBe(0);
  });

  it('powers off after a granted sfshutdown', async () => {
    await using vm = await bootWithIdentity(image);
    vm.host.startExec(['sfshutdown']);
    const call = await vm.host.nextCall();
    expect(call.text).toBe('shutdown_cluster');
    vm.host.send('reply', call.id, 'ok');
    expect(await vm.ended(10_000)).toBe(true);
  });
});

describe.skipIf(!able)('debian', () => {
  it('boots from its disk with Python, BLAST and the proteomes', async () => {
    await using vm = await bootWithIdentity(await buildImage('debian'), { memoryMib: 512 });
    const script =
      'import snowflock, json, os; print(snowflock.whoami(), sorted(os.listdir("/srv/klebsiella")), sum(1 for l in open("/srv/klebsiella/query.faa") if l[0] == ">") > 4000)';
    const python = await vm.host.exec(['python3', '-c', script]);
    expect(python.stderr).toBe('');
    expect(python.stdout).toMatch(/^\(7, 0\) .*'db'.*'query.faa'\] True\n$/);
    const blast = await vm.host.exec([
      'sh',
      '-c',
      'head -n 2 /srv/klebsiella/query.faa > /tmp/q; blastdbcmd -db /srv/klebsiella/db/kleb3 -info | head -n 3; which sfclone; ' +
        'hostname; findmnt -n -o FSTYPE / || mount | grep " / "; df -m / | tail -n 1',
    ]);
    expect(blast.stdout).toContain('three Klebsiella proteomes');
    expect(blast.stdout).toContain('/usr/bin/sfclone\nmaster\n');
    expect(blast.stdout).toContain('ext4');
  });
});
