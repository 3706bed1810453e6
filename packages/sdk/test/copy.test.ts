import {
  chmodSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { ControlClient } from '@snowflock/protocol';
import { copyFromVm, copyToVm } from '../src/index.ts';
import { startFakeSfld, type FakeSfld } from './fake-sfld.ts';

let fake: FakeSfld;
let client: ControlClient;
let dir: string;
beforeEach(async () => {
  fake = await startFakeSfld();
  client = new ControlClient({ socketPath: fake.socketPath });
  dir = await mkdtemp('/tmp/sfcp-');
  mkdirSync(join(dir, 'tree/sub'), { recursive: true });
  writeFileSync(join(dir, 'tree/run.sh'), '#!/bin/sh\n');
  writeFileSync(join(dir, 'tree/sub/data'), Buffer.alloc(700_000, 7));
  chmodSync(join(dir, 'tree/run.sh'), 0o750);
  chmodSync(join(dir, 'tree/sub'), 0o711);
  symlinkSync('run.sh', join(dir, 'tree/link'));
});
afterEach(async () => {
  client.close();
  expect(fake.violations).toEqual([]);
  await fake[Symbol.asyncDispose]();
  await rm(dir, { recursive: true, force: true });
});

const at = (path: string): string => join(dir, path);
const mode = (path: string): number => statSync(at(path)).mode & 0o7777;
const into = (from: string, to: string): Promise<void> =>
  copyToVm(client, { from: at(from), vm: '0:1', to: at(to) });
const out = (from: string, to: string): Promise<void> =>
  copyFromVm(client, { from: at(from), vm: '0:1', to: at(to) });

describe.each([
  ['into', into],
  ['out of', out],
])('copying %s a VM', (_, copy) => {
  it('makes a file of the name given, or in the directory given, with its mode', async () => {
    await copy('tree/run.sh', 'copy.sh');
    expect([readFileSync(at('copy.sh'), 'utf8'), mode('copy.sh')]).toEqual(['#!/bin/sh\n', 0o750]);
    mkdirSync(at('there'));
    await copy('tree/sub/data', 'there');
    expect(statSync(at('there/data')).size).toBe(700_000);
    writeFileSync(at('empty'), '');
    await copy('empty', 'there/empty2');
    expect(statSync(at('there/empty2')).size).toBe(0);
    expect(readdirSync(at('there')).sort()).toEqual(['data', 'empty2']);
  });

  it('makes a directory with all that is in it', async () => {
    await copy('tree', 'new');
    expect(readdirSync(at('new')).sort()).toEqual(['link', 'run.sh', 'sub']);
    expect([mode('new/run.sh'), mode('new/sub')]).toEqual([0o750, 0o711]);
    expect(readFileSync(at('new/sub/data')).equals(readFileSync(at('tree/sub/data')))).toBe(true);
    mkdirSync(at('there'));
    await copy('tree', 'there');
    expect(readdirSync(at('there/tree')).sort()).toEqual(['link', 'run.sh', 'sub']);
  });

  it('says what is wrong, and leaves nothing half-done', async () => {
    await expect(copy('missing', 'x')).rejects.toThrow(/missing: no such file or directory/);
    await expect(copy('tree/run.sh', 'no/such/folder')).rejects.toThrow(
      /no such file or directory|nonexistent/i,
    );
    await expect(copy('tree', 'no/such/folder')).rejects.toThrow(/no such file or directory/i);
    await expect(copyToVm(client, { from: '/dev/null', vm: '0:1', to: at('x') })).rejects.toThrow(
      /neither a file/,
    );
    await expect(copyFromVm(client, { from: '/dev/null', vm: '0:1', to: at('x') })).rejects.toThrow(
      /neither a file/,
    );
    expect(readdirSync(dir)).toEqual(['tree']);
  });
});

describe('copying out of a VM', () => {
  it('brings no set-id bits and no device nodes', async () => {
    chmodSync(at('tree/run.sh'), 0o6755);
    await out('tree/run.sh', 'one');
    await out('tree', 'all');
    expect([mode('one'), mode('all/run.sh')]).toEqual([0o755, 0o755]);
  });

  it('leaves no partial file when the VM goes away', async () => {
    const pending = copyFromVm(client, { from: '/dev/stdin', vm: '0:1', to: at('partial') });
    await expect(pending).rejects.toThrow();
    expect(existsSync(at('partial'))).toBe(false);
    expect(readdirSync(dir)).toEqual(['tree']);
  });
});
