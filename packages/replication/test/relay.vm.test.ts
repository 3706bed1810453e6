// A relay passes on what a memtap of its host serves, and fetches through it what is not there yet; who is fed by one goes to the next
// source when it is gone, or has no snapshot when it should.

import { writeFileSync } from 'node:fs';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { requireVm } from '../../../tests/require-vm.ts';
import type { MemserverProcess, MemtapProcess } from '../src/index.ts';
import { Harness, type Stack } from './vm-harness.ts';

const PAGES = 4096;
const WIRE_PAGE_BYTES = 4096;

describe.skipIf(!requireVm(['root', 'fuse']))('a relay', () => {
  let harness: Harness;
  let stack: Stack;
  let relay: MemserverProcess;
  beforeEach(async () => {
    harness = new Harness();
    stack = await harness.stack({ pages: PAGES, kind: 'mixed' });
    relay = await harness.memserver({ key: stack.key });
  });
  afterEach(() => harness[Symbol.asyncDispose]());

  async function serve(): Promise<void> {
    const presencePath = harness.path('presence');
    writeFileSync(presencePath, stack.frozen.presence);
    const { ramPath, controlPath } = stack.memtap;
    await relay.relay({ ramPath, presencePath, controlPath });
  }

  /** Fed by the relay, and if it fails by the memserver. */
  async function fed(): Promise<MemtapProcess> {
    const memtap = await harness.memtap({ pages: PAGES });
    const sources = [relay, stack.memserver].map(({ port }) => ({ address: '127.0.0.1', port }));
    await memtap.attach({ sources, key: stack.key, presence: stack.frozen.presence });
    return memtap;
  }

  const read = (memtap: MemtapProcess, order: 'seq' | 'rand'): Promise<object> =>
    harness.faults([memtap.ramPath, stack.seed, 'mixed', order, PAGES]);

  it('serves every page byte for byte, and has each sent to its host once', async () => {
    await serve();
    const [first, second] = [await fed(), await fed()];
    for (const result of await Promise.all([read(first, 'rand'), read(second, 'seq')]))
      expect(result).toMatchObject({ pages: PAGES, wrong: 0 });
    const dataBytes = (PAGES / 2) * WIRE_PAGE_BYTES;
    const { sentBytes } = await stack.memserver.stats();
    expect(sentBytes).toBeGreaterThan(dataBytes);
    expect(sentBytes).toBeLessThan(1.3 * dataBytes);
    expect((await relay.stats()).sentBytes).toBeGreaterThan(2 * dataBytes);
    // what is in its host's page cache by now needs nobody
    expect(await read(stack.memtap, 'seq')).toMatchObject({ wrong: 0 });
    expect((await stack.memserver.stats()).sentBytes).toBeLessThan(1.3 * dataBytes);
  });

  it('fetches what nobody below waits for as what nobody waits for, and brings nothing along', async () => {
    await serve();
    const memtap = await fed();
    await memtap.prefetch(Array.from({ length: 512 }, (_, index) => 4 * index));
    const ahead = async (of: MemtapProcess): Promise<number> => (await of.stats()).prefetchedPages;
    await expect.poll(() => ahead(memtap)).toBeGreaterThan(100);
    await expect.poll(async () => (await ahead(stack.memtap)) - (await ahead(memtap))).toBe(0);
    const nobodyWaited = { demandReads: 0, demandPages: 0, missLatency: { count: 0 } };
    expect(await stack.memtap.stats()).toMatchObject(nobodyWaited);
    expect((await stack.memserver.learnt()).wakeUpPages).toEqual([]);
  });

  it('that is killed leaves those that it fed with the next source', async () => {
    await serve();
    const memtap = await fed();
    const reading = read(memtap, 'rand');
    process.kill(relay.pid, 'SIGKILL');
    expect(await reading).toMatchObject({ pages: PAGES, wrong: 0 });
    expect(await memtap.stats()).toMatchObject({ sourceLost: null });
  });

  it('whose memtap is gone does, too', async () => {
    await serve();
    const memtap = await fed();
    const reading = read(memtap, 'rand');
    process.kill(stack.memtap.pid, 'SIGKILL');
    expect(await reading).toMatchObject({ pages: PAGES, wrong: 0 });
  });

  it('that gets no snapshot is not waited for', async () => {
    const memtap = await fed();
    expect(await read(memtap, 'rand')).toMatchObject({ pages: PAGES, wrong: 0 });
    expect((await relay.stats()).sentBytes).toBe(0);
  });
});
