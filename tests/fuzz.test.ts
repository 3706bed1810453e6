// Five seconds of every fuzz target (tools/fuzz), its regression inputs first; npm run fuzz -- TARGET --seconds N for longer.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';

const MAIN = join(import.meta.dirname, '../tools/fuzz/main.ts');
const SECONDS = 5;
/** Exit status: the target is in C, and clang is not installed (`npm test` installs it when it runs as root). */
const NO_CLANG = 3;

describe('fuzz', () => {
  it.for(['config', 'guest', 'page-wire', 'fuse', 'http', 'agent'])(
    '%s takes whatever comes',
    { timeout: 60_000 },
    async (target, context) => {
      const child = spawn(process.execPath, [MAIN, target, '--seconds', String(SECONDS)], {
        stdio: ['ignore', 'pipe', 'pipe'],
      });
      let text = '';
      for (const stream of [child.stdout, child.stderr])
        stream.on('data', (chunk: Buffer) => (text += chunk.toString()));
      const [status] = (await once(child, 'close')) as [number | null];
      // as for the VM tests: skipped with its reason where set-up could not install it, never where CI needs all of them
      if (status === NO_CLANG && process.env.SNOWFLOCK_REQUIRE_VM !== '1') return context.skip(text.trim());
      expect(text).toMatch(/\d+ runs in .* seed \d+/);
      expect(status, text).toBe(0);
    },
  );
});
