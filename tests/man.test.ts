// The manual pages: one for every command, and both readers of such pages find nothing wrong with them.

import { execFile, execFileSync } from 'node:child_process';
import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { describe, expect, it } from 'vitest';
import { GUEST_COMMANDS } from '@snowflock/image';
import { haveTools } from '../guest/image/test/needs.ts';
import { snowflockProgram } from '../packages/cli/src/index.ts';

const ROOT = join(import.meta.dirname, '..');
const run = promisify(execFile);
const pages = ['man1', 'man8'].flatMap((section) =>
  readdirSync(join(ROOT, 'man', section)).map((file) => join('man', section, file)),
);

describe('manual pages', () => {
  it('are there for every command', () => {
    const subcommands = snowflockProgram().commands.map((command) => `snowflock-${command.name()}`);
    for (const name of [...readdirSync(join(ROOT, 'bin')), ...subcommands, ...GUEST_COMMANDS, 'sfmpirun'])
      expect(
        [1, 8].some((section) => existsSync(join(ROOT, `man/man${section}/${name}.${section}`))),
        `man page of ${name}`,
      ).toBe(true);
  });

  it.skipIf(!haveTools('mandoc'))('are flawless to mandoc', async () => {
    // It says what it finds on standard output, with a status above 0.
    const { stdout, stderr } = await run('mandoc', ['-T', 'lint', '-W', 'warning', ...pages], { cwd: ROOT });
    expect(stdout + stderr).toBe('');
  });

  it.skipIf(!haveTools('mandoc'))('say what the commands say', () => {
    const page = execFileSync('mandoc', ['-T', 'ascii', '-O', 'width=200', 'man/man1/snowflock-exec.1'], {
      cwd: ROOT,
      encoding: 'utf8',
    }).replace(/.\x08/g, '');
    expect(page).toContain('snowflock-exec - run a command in a VM');
    expect(page).toContain(
      '--wait seconds\n              how long to wait for a VM that boots (default: 180)',
    );
    expect(page).toContain("write sh -c '...' for one.");
  });
});
