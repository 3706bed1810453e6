// A memserver writes its snapshot to files, another one serves them: no byte is another one, and none of what was not there.

import { randomBytes } from 'node:crypto';
import { rmSync, statSync, writeFileSync } from 'node:fs';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { PresenceMap } from '../src/index.ts';
import { requireVm } from '../../../tests/require-vm.ts';
import { Harness } from './vm-harness.ts';

const PAGES = 4096;
const ID = '0d3f6b0a-7c1e-4a57-9d0e-3f1b2a4c5d6e';

describe.skipIf(!requireVm(['root', 'fuse']))('a snapshot on the disk', () => {
  let harness: Harness;
  beforeEach(() => {
    harness = new Harness();
  });
  afterEach(async () => harness[Symbol.asyncDispose]());

  it('is served by another memserver as by the one that wrote it, when its source is gone', async () => {
    const { memserver, source, frozen, seed } = await harness.stack({ pages: PAGES, kind: 'mixed' });
    const path = harness.path('ram.pages');
    const saved = await memserver.save({ id: ID, ramPath: path });
    expect(saved.disk).toBeNull();
    expect(statSync(path).size).toBe(saved.ram.bytes);
    expect(saved.ram.dataPages).toBeLessThanOrEqual(frozen.presentPages);
    source.child.kill('SIGKILL');
    await memserver.stop();

    const key = randomBytes(32);
    const again = await harness.memserver({ key });
    const opened = await again.openCheckpoint({ id: ID, ram: { path, pageCount: PAGES } });
    expect(PresenceMap.decode(opened.presence, { maxPages: PAGES }).count()).toBe(saved.ram.dataPages);
    const memtap = await harness.memtap({ pages: PAGES });
    await memtap.attach({
      sources: [{ address: '127.0.0.1', port: again.port }],
      key,
      presence: opened.presence,
    });
    // what is served was opened before it was deleted
    rmSync(path);
    const result = await harness.faults([memtap.ramPath, seed, 'mixed', 'rand', PAGES]);
    expect(result).toMatchObject({ pages: PAGES, wrong: 0 });
  });

  it('is fetched whole by whoever reads it here, who then needs nobody, while it is being read', async () => {
    const { memserver, source, frozen, memtap, seed } = await harness.stack({ pages: PAGES, kind: 'mixed' });
    const presencePath = harness.path('presence');
    writeFileSync(presencePath, frozen.presence);
    const key = randomBytes(32);
    const own = await harness.memserver({ key });
    const reader = harness.faults([memtap.ramPath, seed, 'mixed', 'rand', PAGES]);
    const ramPath = harness.path('kept.pages');
    await own.keep({ id: ID, from: { ramPath: memtap.ramPath, presencePath }, ramPath });
    writeFileSync('/proc/sys/vm/drop_caches', '1');
    const second = harness.faults([memtap.ramPath, seed, 'mixed', 'rand', PAGES]);
    await memtap.move({ sources: [{ address: '127.0.0.1', port: own.port }], key });
    source.child.kill('SIGKILL');
    await memserver.stop();
    expect(await reader).toMatchObject({ pages: PAGES, wrong: 0 });
    expect(await second).toMatchObject({ pages: PAGES, wrong: 0 });
    writeFileSync('/proc/sys/vm/drop_caches', '1');
    expect(await harness.faults([memtap.ramPath, seed, 'mixed', 'rand', PAGES])).toMatchObject({
      ...{ pages: PAGES, wrong: 0 },
    });
    expect(await memtap.stats()).toMatchObject({ sourceLost: null, heldReads: 0 });
  });

  it('is not served when a file is not whole', async () => {
    const again = await harness.memserver({ key: randomBytes(32) });
    const missing = { path: harness.path('none'), pageCount: PAGES };
    await expect(again.openCheckpoint({ id: ID, ram: missing })).rejects.toMatchObject({
      code: 'source-lost',
    });
  });
});
