// Programs of support/guest, compiled for any guest: static, and linked with this checkout's libsf.

import { execFile } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';

const run = promisify(execFile);
const COMPILE_MS = 60_000;
const GUEST_C = join(import.meta.dirname, '../../guest/c');

/** The program of NAME.c, in support/guest unless it is said where. */
export async function compileForGuest(
  name: string,
  directory = join(import.meta.dirname, 'guest'),
): Promise<Buffer> {
  const dir = mkdtempSync('/tmp/sft-cc-');
  try {
    const library = join(dir, 'libsf.a');
    await run('make', ['-s', '-C', GUEST_C, `O=${dir}`, library], { timeout: COMPILE_MS });
    const source = join(directory, `${name}.c`);
    const flags = [
      '-static',
      '-s',
      '-O2',
      '-std=gnu11',
      '-Wall',
      '-Wextra',
      '-Werror',
      `-I${join(GUEST_C, 'lib')}`,
    ];
    await run('gcc', [...flags, '-o', join(dir, name), source, library, '-lm'], { timeout: COMPILE_MS });
    return readFileSync(join(dir, name));
  } finally {
    rmSync(dir, { recursive: true, force: true });
  }
}
