import { cpSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { CheckpointStore, pageFilesOf, readDeviceState } from '../src/sfld/checkpoint-store.ts';
import { silentLog } from '../src/log.ts';

/** Made once, and never again: what was written then is read for ever. */
const FIXTURE = join(import.meta.dirname, 'fixtures/checkpoint-v1');
const ID = '0d3f6b0a-7c1e-4a57-9d0e-3f1b2a4c5d6e';
const NAME = 'as-it-was';
const DEVICE_STATE = Buffer.from('device state '.repeat(20));

let stateDir: string;
beforeEach(() => {
  stateDir = mkdtempSync(join(tmpdir(), 'snowflock-checkpoints-'));
});
afterEach(() => rmSync(stateDir, { recursive: true }));

const open = (): Promise<CheckpointStore> => CheckpointStore.open({ stateDir, log: silentLog() });
const place = (): string => join(stateDir, 'checkpoints', NAME);
const manifest = (): Record<string, unknown> =>
  JSON.parse(readFileSync(join(FIXTURE, 'manifest.json'), 'utf8')) as Record<string, unknown>;

describe('a checkpoint of format 1, as it was written once', () => {
  it('is offered and read', async () => {
    cpSync(FIXTURE, place(), { recursive: true });
    const store = await open();
    expect(store.held).toMatchObject([{ name: NAME, id: ID, vm: '3:0', presentPages: 2, diskBytes: 8192 }]);
    const stored = store.find(NAME, ID);
    expect(await readDeviceState(stored)).toEqual(DEVICE_STATE);
    expect(pageFilesOf(stored)).toEqual({
      id: ID,
      ram: { path: join(place(), 'ram.pages'), pageCount: 64 },
      disk: { path: join(place(), 'disk.pages'), pageCount: 2 },
    });
    await store.remove(NAME, ID);
    expect(readdirSync(join(stateDir, 'checkpoints'))).toEqual([]);
  });

  it('is not offered when its manifest is another one, cut short, or of a later version', async () => {
    for (const text of [
      '',
      '{}',
      JSON.stringify(manifest()).slice(0, -20),
      JSON.stringify({ ...manifest(), version: 2 }),
      JSON.stringify({ ...manifest(), name: 'another' }),
      JSON.stringify({ ...manifest(), ramBytes: -1 }),
    ]) {
      cpSync(FIXTURE, place(), { recursive: true });
      writeFileSync(join(place(), 'manifest.json'), text);
      const store = await open();
      expect(store.held).toEqual([]);
      expect(() => store.find(NAME, ID)).toThrow(/is not on the disk of this host/);
      await expect(store.begin({ name: NAME, id: ID })).rejects.toMatchObject({ code: 'checkpoint-exists' });
    }
  });

  it('is not used when its device state is not what was written', async () => {
    cpSync(FIXTURE, place(), { recursive: true });
    const stored = (await open()).find(NAME, ID);
    const right = readFileSync(join(FIXTURE, 'device.zst'));
    const wrong = Buffer.from(right);
    wrong[wrong.length - 1] = (wrong[wrong.length - 1] ?? 0) ^ 1;
    for (const bytes of [wrong, right.subarray(1), Buffer.alloc(0)]) {
      writeFileSync(join(place(), 'device.zst'), bytes);
      await expect(readDeviceState(stored)).rejects.toMatchObject({ code: 'source-lost' });
    }
  });
});

describe('a checkpoint that is being written', () => {
  it('is there when it is finished, also for the next sfld, and not before', async () => {
    const store = await open();
    const fresh = await store.begin({ name: NAME, id: ID });
    expect(store.held).toEqual([]);

    const { files: _files, ...rest } = manifest() as never as Parameters<CheckpointStore['finish']>[1];
    const files = { ram: { bytes: 1 }, disk: null };
    await store.finish(fresh, { ...rest, files }, DEVICE_STATE);
    expect(store.held).toMatchObject([{ name: NAME, id: ID }]);
    const next = await open();
    expect(next.held).toEqual(store.held);
    expect(await readDeviceState(next.find(NAME, ID))).toEqual(DEVICE_STATE);
  });

  it('is swept when sfld ended before it was finished, or while it was deleted', async () => {
    for (const name of [`.new-${ID}`, `.gone-${ID}`]) {
      mkdirSync(join(stateDir, 'checkpoints', name), { recursive: true });
      writeFileSync(join(stateDir, 'checkpoints', name, 'ram.pages'), 'half');
    }
    expect((await open()).held).toEqual([]);
    expect(readdirSync(join(stateDir, 'checkpoints'))).toEqual([]);
  });
});
