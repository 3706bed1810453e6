// npm run docs: makes anew every file that is made of others. With --check it writes nothing, names what is out of date, and fails.

import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { dirname, join, relative } from 'node:path';
import { apiReference } from './api-reference.ts';
import { guestTypes } from './guest-types.ts';
import { manPages } from './man.ts';
import type { MadeFile } from './made-file.ts';

const ROOT = join(import.meta.dirname, '../..');
const check = process.argv.slice(2).includes('--check');

async function current(path: string): Promise<string | null> {
  try {
    return await readFile(path, 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return null;
    throw error;
  }
}

// The reference is made of the types, among others: in this order.
for (const make of [guestTypes, manPages, apiReference]) for (const file of await make(ROOT)) await put(file);

async function put({ path, text }: MadeFile): Promise<void> {
  const file = join(ROOT, path);
  if ((await current(file)) === text) return;
  if (check) {
    console.error(`${relative(ROOT, file)} is out of date: npm run docs`);
    process.exitCode = 1;
  } else {
    await mkdir(dirname(file), { recursive: true });
    await writeFile(file, text);
    console.log(path);
  }
}
