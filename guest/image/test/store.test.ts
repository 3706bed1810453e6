// The store, the lock and the archive writer, without building anything large.

import { execFileSync, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { SnowflockError } from '@snowflock/protocol';
import { run } from '../src/command.ts';
import { encodeCpio, MODE_CHARACTER, MODE_DIRECTORY, MODE_FILE, MODE_SYMLINK } from '../src/cpio.ts';
import { buildImage, findImage, listImages, storeDirectory } from '../src/index.ts';
import { withLock } from '../src/lock.ts';
import { encodeManifest, MANIFEST_FILE, type ImageManifest } from '../src/manifest.ts';
import { removeOldImages } from '../src/old-images.ts';

let directory: string;
const before = process.env['SNOWFLOCK_IMAGES'];
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'sf-store-'));
  process.env['SNOWFLOCK_IMAGES'] = directory;
});
afterEach(() => {
  if (before === undefined) delete process.env['SNOWFLOCK_IMAGES'];
  else process.env['SNOWFLOCK_IMAGES'] = before;
  rmSync(directory, { recursive: true, force: true });
});

function store(hash: string, createdAt: string): ImageManifest {
  const at = join(directory, `micro-${hash}`);
  const manifest: ImageManifest = {
    name: 'micro',
    hash,
    recipe: 'r',
    directory: at,
    kernel: join(at, 'vmlinux'),
    initrd: join(at, 'initrd'),
    append: 'quiet',
    disk: { path: join(at, 'disk.raw'), format: 'raw', sizeBytes: 5 },
    createdAt,
    packages: { busybox: '1' },
  };
  mkdirSync(at);
  writeFileSync(join(at, MANIFEST_FILE), encodeManifest(manifest));
  return manifest;
}

describe('store', () => {
  it('finds the newest image and reads back what was written', async () => {
    const old = store('aaaa', '2026-01-01T00:00:00.000Z');
    const young = store('bbbb', '2026-01-02T00:00:00.000Z');
    mkdirSync(join(directory, '.tmp-micro-1'));
    expect(await listImages()).toEqual([young, old]);
    expect(await findImage('micro')).toEqual(young);
  });

  it('says which image is missing', async () => {
    await expect(findImage('micro')).rejects.toMatchObject({ code: 'no-such-image' });
    await expect(findImage('windows')).rejects.toThrow('there are micro, debian, mpi, distcc, examples');
    process.env['SNOWFLOCK_IMAGES'] = join(directory, 'absent');
    expect(await listImages()).toEqual([]);
    expect(storeDirectory()).toBe(join(directory, 'absent'));
  });

  it.each(['{', '[]', '{"name":"micro"}', '{"name":"other","hash":"a"}'])(
    'does not trust a manifest: %s',
    async (text) => {
      const { directory: at } = store('cccc', '2026-01-01T00:00:00.000Z');
      writeFileSync(join(at, MANIFEST_FILE), text);
      await expect(listImages()).rejects.toMatchObject({ code: 'internal' });
    },
  );

  it('leaves nothing behind when a build is aborted or lacks a tool', async () => {
    const stop = AbortSignal.abort(new Error('enough'));
    await expect(buildImage('micro', { signal: stop })).rejects.toThrow('enough');
    const path = process.env['PATH'];
    process.env['PATH'] = '/nowhere';
    try {
      await expect(buildImage('micro')).rejects.toMatchObject({ code: 'unavailable' });
    } finally {
      process.env['PATH'] = path;
    }
    expect(readdirSync(directory)).toEqual([]);
  });
});

describe('old images', () => {
  it.skipIf(process.getuid?.() !== 0)(
    'go when nobody uses them, but for the one before the newest',
    async () => {
      const days = ['aaaa', 'bbbb', 'cccc', 'dddd', 'eeee'];
      const [open, named, unused] = days.map((hash, day) => store(hash, `2026-01-0${day + 1}T00:00:00.000Z`));
      const kept = (): string[] => readdirSync(directory).sort();
      const disk = join(open?.directory ?? '', 'disk.raw');
      writeFileSync(disk, '');
      const vm = spawn('sh', ['-c', 'exec 3<"$0"; echo; read -r _', disk], {
        stdio: ['pipe', 'pipe', 'inherit'],
      });
      const tool = spawn('sh', ['-c', 'echo; read -r _', named?.kernel ?? ''], {
        stdio: ['pipe', 'pipe', 'inherit'],
      });
      await Promise.all([once(vm.stdout, 'data'), once(tool.stdout, 'data')]);
      expect(await removeOldImages('micro')).toEqual([unused?.directory]);
      expect(kept()).toEqual(['micro-aaaa', 'micro-bbbb', 'micro-dddd', 'micro-eeee']);
      for (const user of [vm, tool]) user.stdin.end();
      await Promise.all([once(vm, 'close'), once(tool, 'close')]);
      expect(await removeOldImages('debian')).toEqual([]);
      expect(await removeOldImages('micro')).toHaveLength(2);
      expect(kept()).toEqual(['micro-dddd', 'micro-eeee']);
    },
  );
});

describe('lock', () => {
  it('lets one holder in at a time', async () => {
    const path = join(directory, 'lock');
    let inside = 0;
    let most = 0;
    const turns = Array.from({ length: 5 }, () =>
      withLock(path, {}, async () => {
        most = Math.max(most, ++inside);
        await sleep(10);
        inside--;
      }),
    );
    await Promise.all(turns);
    expect(most).toBe(1);
    expect(readdirSync(directory)).toEqual([]);
  });

  it('takes over from a holder that died, also when its pid lives again', async () => {
    const path = join(directory, 'lock');
    const { pid } = spawnSync('true');
    for (const stale of [`${pid} 1\n`, `${process.pid} 1\n`]) {
      writeFileSync(path, stale);
      expect(await withLock(path, {}, async () => 'in')).toBe('in');
    }
    expect(existsSync(path)).toBe(false);
  });

  it('waits no longer than its signal', async () => {
    const path = join(directory, 'lock');
    await withLock(path, {}, async () => {
      await expect(withLock(path, { signal: AbortSignal.timeout(50) }, async () => 1)).rejects.toThrow();
    });
  });
});

describe('tools', () => {
  it('names the package of a missing tool', async () => {
    await expect(run('no-such-tool', [])).rejects.toMatchObject({ code: 'unavailable' });
  });

  it('tells a full disk from other failures', async () => {
    const full = run('sh', ['-c', 'echo "write: No space left on device" >&2; exit 1']);
    await expect(full).rejects.toMatchObject({ code: 'unavailable' });
    const other = run('sh', ['-c', 'echo because >&2; exit 7']);
    await expect(other).rejects.toThrow(/status 7[^]*because/);
    await expect(other).rejects.toBeInstanceOf(SnowflockError);
  });

  it('stops the whole process group', async () => {
    const stop = AbortSignal.timeout(100);
    const started = Date.now();
    await expect(run('sh', ['-c', 'sleep 30 & wait'], { signal: stop })).rejects.toThrow();
    expect(Date.now() - started).toBeLessThan(20_000);
  });
});

describe('cpio', () => {
  it('writes what cpio reads', () => {
    const archive = encodeCpio([
      { path: 'dev', mode: MODE_DIRECTORY | 0o755 },
      { path: 'dev/console', mode: MODE_CHARACTER | 0o600, device: { major: 5, minor: 1 } },
      { path: 'odd', mode: MODE_FILE | 0o644, data: Buffer.from('odd length') },
      { path: 'link', mode: MODE_SYMLINK | 0o777, data: Buffer.from('odd') },
    ]);
    expect(archive.length % 4).toBe(0);
    if (spawnSync('cpio', ['--version']).status !== 0) return;
    const list = execFileSync('cpio', ['-tv', '--quiet'], { input: archive }).toString().trim().split('\n');
    expect(list.map((line) => line.replace(/\s+/g, ' ').replace(/ \w+ \d+ \d+ /, ' '))).toEqual([
      expect.stringMatching(/^drwxr-xr-x .* dev$/),
      expect.stringMatching(/^crw------- .* 5, 1 .*dev\/console$/),
      expect.stringMatching(/^-rw-r--r-- .* 10 .*odd$/),
      expect.stringMatching(/^lrwxrwxrwx .*link -> odd$/),
    ]);
  });
});
