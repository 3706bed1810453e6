import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as fc from 'fast-check';
import { afterAll, describe, expect, it } from 'vitest';
import { PageFile } from '../src/checkpoint/page-file.ts';
import { PageFileDisk } from '../src/checkpoint/page-file-disk.ts';
import { writePageFile } from '../src/checkpoint/write-page-file.ts';
import { PresenceMap } from '../src/index.ts';

const directory = mkdtempSync(join(tmpdir(), 'snowflock-page-file-'));
afterAll(() => rmSync(directory, { recursive: true }));

const ID = '0d3f6b0a-7c1e-4a57-9d0e-3f1b2a4c5d6e';
let serial = 0;
const freshPath = (): string => join(directory, `pages-${serial++}`);

/** Each page: absent, present and zero, or present with something in it. */
type Kind = 'absent' | 'zero' | 'data';
const kinds: fc.Arbitrary<Kind[]> = fc
  .array(fc.tuple(fc.constantFrom<Kind>('absent', 'zero', 'data'), fc.integer({ min: 1, max: 300 })), {
    maxLength: 6,
  })
  .map((runs) => runs.flatMap(([kind, count]) => Array.from({ length: count }, () => kind)));

/** Four bytes say which page it is; the fixture was made with the same. */
function pageOf(kind: Kind | undefined, page: number): Buffer {
  const bytes = Buffer.alloc(4096);
  if (kind === 'data') {
    bytes.fill((page % 250) + 1);
    bytes.writeUInt32LE(page + 1, 0);
  }
  return bytes;
}

async function write(path: string, pages: readonly Kind[], id = ID): Promise<{ bytes: number }> {
  const presence = new PresenceMap(pages.length);
  pages.forEach((kind, page) => kind !== 'absent' && presence.set(page));
  return writePageFile(path, id, {
    presence,
    read: (target, { offset, firstPage, pageCount }) => {
      for (let index = 0; index < pageCount; index++) {
        expect(pages[firstPage + index]).not.toBe('absent');
        pageOf(pages[firstPage + index], firstPage + index).copy(target, offset + index * 4096);
      }
    },
  });
}

async function readAll(file: PageFile): Promise<Buffer> {
  const out = Buffer.alloc(file.pageCount * 4096, 0xff);
  for (let page = 0; page < file.pageCount; page += 256)
    await new PageFileDisk(file).read(out, {
      offset: page * 4096,
      firstPage: page,
      pageCount: Math.min(256, file.pageCount - page),
    });
  return out;
}

describe('a page file', () => {
  it('gives back what was written, and holds no zero page', async () => {
    await fc.assert(
      fc.asyncProperty(kinds, async (pages) => {
        const path = freshPath();
        const { bytes } = await write(path, pages);
        const file = PageFile.open(path, { id: ID, pageCount: pages.length });
        expect(file.sizeBytes).toBe(bytes);
        expect(file.presence.count()).toBe(pages.filter((kind) => kind === 'data').length);
        const all = await readAll(file);
        pages.forEach((kind, page) =>
          expect(all.subarray(page * 4096, (page + 1) * 4096).equals(pageOf(kind, page))).toBe(true),
        );
        file.close();
      }),
      { numRuns: 30 },
    );
  });

  it('is refused with an error when any byte of it is another, and never gives a wrong page', async () => {
    const pages: Kind[] = ['data', 'absent', 'zero', 'data', 'data', 'absent', 'data'];
    const path = freshPath();
    await write(path, pages);
    const right = readFileSync(path);
    const damagedPath = freshPath();
    await fc.assert(
      fc.asyncProperty(fc.nat(right.length - 1), fc.integer({ min: 1, max: 255 }), async (at, flip) => {
        // the header's rest means nothing
        fc.pre(at < 48 || at >= 4096);
        const bytes = Buffer.from(right);
        bytes[at] = (bytes[at] ?? 0) ^ flip;
        writeFileSync(damagedPath, bytes);
        await expect(
          (async () => readAll(PageFile.open(damagedPath, { id: ID, pageCount: pages.length })))(),
        ).rejects.toMatchObject({ code: 'source-lost' });
      }),
      { numRuns: 200 },
    );
  });

  it('is refused when cut short, too long, of another checkpoint or of another size', async () => {
    const path = freshPath();
    await write(path, ['data', 'zero', 'data']);
    const right = readFileSync(path);
    const open = (bytes: Buffer, expected: { id?: string; pageCount?: number } = {}): PageFile => {
      writeFileSync(path, bytes);
      return PageFile.open(path, { id: ID, pageCount: 3, ...expected });
    };
    for (const length of [0, 20, 4095, 4096, right.length - 4, right.length - 1])
      expect(() => open(right.subarray(0, length))).toThrow(/cannot be used/);
    expect(() => open(Buffer.concat([right, Buffer.alloc(1)]))).toThrow(/bytes instead of/);
    expect(() => open(right, { id: ID.replace('0', '1') })).toThrow(/another checkpoint/);
    expect(() => open(right, { pageCount: 4 })).toThrow(/of 3 pages, not of 4/);
    open(right).close();
  });

  it('leaves nothing when its pages cannot be read to the end', async () => {
    const path = freshPath();
    const failing = writePageFile(path, ID, {
      presence: PresenceMap.full(600),
      read: (_target, { firstPage }) => {
        if (firstPage > 0) throw new Error('the source is lost');
      },
    });
    await expect(failing).rejects.toThrow('the source is lost');
    expect(() => readFileSync(path)).toThrow(/ENOENT/);
  });

  it('is never written over what is there', async () => {
    const failing = writePageFile('/dev/full', ID, { presence: PresenceMap.full(1), read: () => undefined });
    await expect(failing).rejects.toMatchObject({ code: 'unavailable' });
  });
});

describe('a page file of format 1, as it was written once', () => {
  const path = join(import.meta.dirname, 'fixtures/page-file-v1.pages');

  it('is read', async () => {
    const file = PageFile.open(path, { id: ID, pageCount: 64 });
    const all = await readAll(file);
    for (let page = 0; page < 64; page++) {
      const kind = page === 3 || page === 40 ? 'data' : 'absent';
      expect(all.subarray(page * 4096, (page + 1) * 4096).equals(pageOf(kind, page))).toBe(true);
    }
    file.close();
  });

  it('is written the same today', async () => {
    const fresh = freshPath();
    await write(
      fresh,
      Array.from({ length: 64 }, (_, page) => (page === 3 || page === 40 ? 'data' : 'absent')),
    );
    // but for the presence map, whose compressor may change
    expect(
      readFileSync(fresh)
        .subarray(4096, 3 * 4096)
        .equals(readFileSync(path).subarray(4096, 3 * 4096)),
    ).toBe(true);
  });
});
