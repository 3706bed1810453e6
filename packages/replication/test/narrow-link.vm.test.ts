// Pages over a link that is really narrow, and over one that is not: what is compressed, and that it is the same memory.

import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { requireVm } from '../../../tests/require-vm.ts';
import { readOverLink } from './narrow-link.ts';
import { Harness } from './vm-harness.ts';

const PAGES = 4096;
const RAW_BYTES = PAGES * 4096;
/** Their pages can be compressed, or not. */
const REPEATING_SEED = 2 ** 31 + 7;
const NOISY_SEED = 7;

describe.skipIf(!requireVm(['root', 'fuse', 'ip']))('a link between memserver and memtap', () => {
  let harness: Harness;
  beforeEach(() => {
    harness = new Harness();
  });
  afterEach(() => harness[Symbol.asyncDispose]());

  it('that is narrow carries pages compressed, which are byte for byte the same', async () => {
    const content = { seed: REPEATING_SEED, pages: PAGES };
    const { output, stats, served } = await readOverLink(harness, { rateMbit: 100, content });
    expect(JSON.parse(output)).toMatchObject({ pages: PAGES, wrong: 0 });
    expect(stats.compressedPages).toBeGreaterThan(PAGES / 2);
    expect(stats.compressedPages).toBe(served.compressedPages);
    expect(stats.wireBytesReceived).toBeLessThan(RAW_BYTES / 2);
  });

  it('that is narrow carries what does not get smaller as it is', async () => {
    const content = { seed: NOISY_SEED, pages: PAGES / 4 };
    const { output, stats } = await readOverLink(harness, { rateMbit: 100, content });
    expect(JSON.parse(output)).toMatchObject({ pages: PAGES / 4, wrong: 0 });
    expect(stats.compressedPages).toBe(0);
  });

  it('that is narrow carries nothing compressed to a memtap that is told so', async () => {
    const content = { seed: REPEATING_SEED, pages: PAGES / 4 };
    const { output, stats } = await readOverLink(harness, { rateMbit: 100, content, compress: false });
    expect(JSON.parse(output)).toMatchObject({ pages: PAGES / 4, wrong: 0 });
    expect(stats.compressedPages).toBe(0);
    expect(stats.wireBytesReceived).toBeGreaterThan(RAW_BYTES / 4);
  });

  it('that is as fast as it goes carries nothing compressed', async () => {
    const content = { seed: REPEATING_SEED, pages: PAGES };
    const { output, stats } = await readOverLink(harness, { rateMbit: undefined, content });
    expect(JSON.parse(output)).toMatchObject({ pages: PAGES, wrong: 0 });
    expect(stats.compressedPages).toBe(0);
  });
});
