// What is taken for a disk image, and what is refused without waiting for anything.

import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { diskInfo } from '../src/index.ts';

let dir: string;
beforeAll(() => {
  dir = mkdtempSync(join(tmpdir(), 'sf-disk-'));
});
afterAll(() => rmSync(dir, { recursive: true }));

function image(name: string, bytes: Buffer): string {
  const path = join(dir, name);
  writeFileSync(path, bytes);
  return path;
}

it('takes a file of whole sectors for a raw disk, whatever is in it', async () => {
  expect(await diskInfo(image('raw', Buffer.alloc(1024)))).toEqual({ format: 'raw', sizeBytes: 1024 });
  const vmdk = Buffer.alloc(512);
  vmdk.write('KDMV');
  expect(await diskInfo(image('vmdk', vmdk))).toEqual({ format: 'raw', sizeBytes: 512 });
});

it('refuses what is no disk', async () => {
  const refused = (path: string): Promise<unknown> => diskInfo(path).catch((error: unknown) => error);
  const pipe = join(dir, 'pipe');
  execFileSync('mkfifo', [pipe]);
  for (const [path, message] of [
    [join(dir, 'none'), /none cannot be read: ENOENT/],
    [dir, /is not a file/],
    [pipe, /pipe is not a file/],
    ['/dev/null', /is not a file/],
    [image('empty', Buffer.alloc(0)), /is no disk: 0 bytes/],
    [image('odd', Buffer.alloc(1000)), /is no disk: 1000 bytes/],
  ] as const)
    expect(await refused(path)).toMatchObject({
      code: 'no-such-image',
      message: expect.stringMatching(message) as string,
    });
});
