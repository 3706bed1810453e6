// The declarations of the guest's TypeScript module, of its JSDoc comments; which at the same time is the check of its types.

import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { MadeFile } from './made-file.ts';

const NAMES = ['snowflock.d.mts', 'connection.d.mts'];

export async function guestTypes(root: string): Promise<MadeFile[]> {
  const output = mkdtempSync(join(tmpdir(), 'sf-types-'));
  try {
    const tsc = join(root, 'node_modules/typescript/bin/tsc');
    const args = [tsc, '-p', join(root, 'guest/typescript'), '--outDir', output];
    execFileSync(process.execPath, args, { stdio: 'inherit' });
    return NAMES.map((name) => ({
      path: `guest/typescript/${name}`,
      text: readFileSync(join(output, name), 'utf8'),
    }));
  } finally {
    rmSync(output, { recursive: true, force: true });
  }
}
