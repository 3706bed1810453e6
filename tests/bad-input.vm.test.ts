// What people get wrong, and what machines lack: one clear line, a status that is not 0, and nothing left behind.

import { execFileSync } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { patient, timed } from './support/deadline.ts';
import { hostCommand } from './support/host-command.ts';
import { requireVm } from './require-vm.ts';
import { sharedLab, TestLab } from './support/test-lab.ts';

const RUN = requireVm();
/** A refusal comes at once; commands are Node programs on a busy machine. */
const REFUSED_MS = 10_000;
const BUILD_MS = 110_000;

/** A /dev with everything that a host needs but /dev/fuse, in the mount namespace where it runs. */
const HIDE_FUSE = `mount -t tmpfs none /mnt && cd /dev && mkdir -p /mnt/net /mnt/shm /mnt/pts &&
  cp -a null zero full random urandom tty ptmx fd /mnt/ && cp -a net/tun /mnt/net/ && mount --move /mnt /dev`;

let dir: string;
beforeAll(() => {
  dir = mkdtempSync('/tmp/sft-input-');
});
afterAll(() => rmSync(dir, { recursive: true }));

function file(name: string, text: string): string {
  const path = join(dir, name);
  writeFileSync(path, text);
  return path;
}

describe.skipIf(!RUN)('sfseed', () => {
  const lab = sharedLab({ hosts: 2, cpus: 2, ramMib: 512 });

  async function refused(name: string, text: string): Promise<string> {
    const { status, out, err, ms } = await lab().command('sfseed', [file(name, text)]);
    expect({ status, out }, err).toEqual({ status: 1, out: '' });
    expect(err).toMatch(/^sfseed: [^\n]+\n$/);
    expect(ms).toBeLessThan(patient(REFUSED_MS));
    expect((await lab().state()).clusters).toEqual([]);
    return err;
  }

  it('never executes what is in a file, and says where the problem is', async () => {
    const trace = join(dir, 'executed');
    const touch = `__import__('os').system('touch ${trace}')`;
    for (const [text, place] of [
      [`disk_image = "micro"\nvcpus = 1\nmemory = ${touch}\n`, '3:10'],
      [`import os; os.system('touch ${trace}')\n`, '1:1'],
      [`disk_image = "micro"\nvcpus = [1 for x in range(3)]\nmemory = 96\n`, '2:'],
      [`disk_image = "micro"; ${touch}\n`, '1:'],
      [`disk_image = f"{${touch}}"\n`, '1:'],
      [`memory = 10**10**10\n`, '1:'],
    ] as const)
      expect(await refused('code.cfg', text), text).toContain(`code.cfg:${place}`);
    expect(existsSync(trace)).toBe(false);
    for (const daemon of ['sfmd', 'sfld']) {
      const config = file(
        `${daemon}.cfg`,
        `hostname = 'host1'\nmaster_host = ${touch}\ncluster_hosts = ${touch}\n`,
      );
      const { status, err } = await hostCommand(daemon, ['run', '--config', config]);
      expect({ status, err }).toEqual({
        status: 1,
        err: expect.stringMatching(new RegExp(`^${daemon}: .*${daemon}\\.cfg:2:15: [^\n]+\n$`)) as string,
      });
    }
    expect(existsSync(trace)).toBe(false);
  });

  it('says what is missing in a file, or wrong', async () => {
    expect(await refused('a.cfg', 'disk_image = "micro"\nvcpus = 1\n')).toContain("missing 'memory'");
    expect(await refused('b.cfg', '')).toContain("missing 'disk_image'");
    expect(await refused('c.cfg', 'disk_image = "micro"\nvcpu = 1\nmemory = 96\n')).toContain(
      "did you mean 'vcpus'",
    );
    expect(await refused('d.cfg', 'disk_image = 5\nvcpus = 1\nmemory = 96\n')).toMatch(
      /d\.cfg:1:14: disk_image/,
    );
    expect(await refused('e.cfg', 'disk_image = "micro"\nvcpus = 0\nmemory = 96\n')).toMatch(
      /e\.cfg:2:9: vcpus/,
    );
    expect(await refused('f.cfg', 'disk_image = "micro"\nvcpus = 1\nmemory = 1\n')).toMatch(
      /f\.cfg:3:10: memory/,
    );
    const { status, err } = await lab().command('sfseed', [join(dir, 'none.cfg')]);
    expect({ status, err }).toMatchObject({ status: 1, err: expect.stringMatching(/none\.cfg/) as string });
  });

  it('refuses a disk image that is not there, and an image that nobody built', async () => {
    const seed = (image: string): string => `disk_image = "${image}"\nvcpus = 1\nmemory = 96\n`;
    expect(await refused('g.cfg', seed('/no/such/disk.img'))).toMatch(
      /disk image \/no\/such\/disk\.img cannot be read/,
    );
    expect(await refused('h.cfg', seed('./none.img'))).toContain(join(dir, 'none.img'));
    expect(await refused('i.cfg', seed(dir))).toMatch(/disk image .* is not a file/);
    expect(await refused('j.cfg', seed('nope'))).toMatch(/no image 'nope'/);
  });

  it('refuses a VM that is larger than any host', async () => {
    const text = await refused('k.cfg', 'disk_image = "micro"\nvcpus = 1\nmemory = 1024\n');
    expect(text).toMatch(
      /no host is large enough for .* 1024 MiB: the most that one has is 2 cpus and 512 MiB/,
    );
    expect(await refused('l.cfg', 'disk_image = "micro"\nvcpus = 3\nmemory = 96\n')).toMatch(
      /no host is large enough/,
    );
  });

  it('a host without /dev/fuse: it runs master VMs but no clones, and says so', async () => {
    const [first, second] = [1, 2];
    try {
      expect(await lab().lab.exec(second, ['sh', '-c', HIDE_FUSE])).toMatchObject({ status: 0 });
      expect(existsSync('/dev/fuse')).toBe(true);
      const master = await lab().seed();
      const printed = await master.run(['sfclone', '2']);
      expect(printed).toMatch(/ 2 allocations received\.\n.*\nI am the master with 1 clones/);
      const lost = (await lab().state()).clusters[0]?.vms.find(
        ({ host, vmid }) => vmid > 0 && host === 'host2',
      );
      expect(lost).toMatchObject({
        status: 'lost',
        reason: expect.stringMatching(/cannot open \/dev\/fuse: /) as string,
      });
      await master.run(['sfmerge', '']);
      expect(await lab().lab.exec(first, ['sh', '-c', HIDE_FUSE])).toMatchObject({ status: 0 });
      const { status, err } = await master.exec(['sfclone', '2']);
      expect({ status, err }).toEqual({
        status: 1,
        err: expect.stringMatching(
          /^sfclone: fork-failed: .*cannot open \/dev\/fuse: .*modprobe fuse/,
        ) as string,
      });
    } finally {
      for (const k of [first, second]) await lab().lab.exec(k, ['umount', '-l', '/dev']);
    }
    const doctor = await hostCommand('snowflock', ['doctor'], {
      prefix: ['unshare', '--mount', 'sh', '-c', `${HIDE_FUSE} && exec "$@"`, 'sh'],
    });
    expect(doctor).toMatchObject({
      status: 1,
      out: expect.stringMatching(/^fail +fuse .*\n +→ .*modprobe fuse/m) as string,
    });
  });
});

describe.skipIf(!RUN)('snowflock lab', () => {
  it('up twice leaves the first as it is; down takes running VMs along', async () => {
    const lab = await TestLab.up({ hosts: 2, cpus: 2, ramMib: 1024 });
    const { name } = lab.lab;
    try {
      const master = await lab.seed();
      const { clones } = await lab.fork(master, 2);
      const again = await lab.command('snowflock', ['lab', 'up', '--name', name, '--hosts', '2']);
      expect(again).toMatchObject({
        status: 1,
        err: expect.stringMatching(/^[^\n]*lab 't\d+' is up already[^\n]*\n$/m) as string,
      });
      for (const clone of clones) expect(await clone.run(['hostname'])).toMatch(/^sf-0-[12]$/);
      expect(await lab.command('snowflock', ['lab', 'up', '--name', name, '--hosts', '0'])).toMatchObject({
        status: 2,
      });
      const down = await timed(() => lab.command('snowflock', ['lab', 'down', '--name', name]));
      expect(down.value).toMatchObject({ status: 0, out: `lab '${name}' is down\n`, err: '' });
      expect(down.ms).toBeLessThan(patient(30_000));
      expect((await lab.command('snowflock', ['lab', 'down', '--name', name])).out).toMatch(/nothing to do/);
      expect(await lab.lab.leftovers()).toEqual([]);
    } finally {
      await lab.down();
    }
  });
});

describe.skipIf(!RUN)('snowflock image build', () => {
  // Full when the kernel is fetched; when it is uncompressed; when the disk is made.
  it.each([4, 60])('on a disk of %i MiB says that it is full, and leaves nothing', async (sizeMib) => {
    const store = join(dir, `store-${sizeMib}`);
    mkdirSync(store);
    execFileSync('mount', ['-t', 'tmpfs', '-o', `size=${sizeMib}m`, 'none', store]);
    try {
      const build = await hostCommand('snowflock', ['image', 'build', 'micro'], {
        env: { SNOWFLOCK_IMAGES: store },
        deadlineMs: BUILD_MS,
      });
      expect(build.status, build.err).toBe(1);
      expect(build.err).toMatch(/^snowflock: .*(no disk space|ran out of disk space|No space left)/m);
      expect(readdirSync(store)).toEqual([]);
      expect(
        (await hostCommand('snowflock', ['image', 'list'], { env: { SNOWFLOCK_IMAGES: store } })).out,
      ).toMatch(/no images/);
    } finally {
      execFileSync('umount', [store]);
    }
  });
});
