// What the shells themselves make of `snowflock completion`.

import { execFile, execFileSync, spawn } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { haveTools } from '../guest/image/test/needs.ts';

const SNOWFLOCK = join(import.meta.dirname, '../bin/snowflock');
const run = promisify(execFile);
const directory = mkdtempSync(join(tmpdir(), 'sf-completion-'));
const scriptOf = (shell: string): string => join(directory, shell);

beforeAll(() => {
  for (const shell of ['bash', 'zsh', 'fish'])
    writeFileSync(scriptOf(shell), execFileSync(SNOWFLOCK, ['completion', shell]));
  mkdirSync(join(directory, 'here'));
  writeFileSync(join(directory, 'here/seed.cfg'), '');
});
afterAll(() => rmSync(directory, { recursive: true }));

/** The line as typed; what is offered for its last word. */
async function inBash(line: string): Promise<string[]> {
  const words = line.split(' ');
  const program = `source "$1"; shift; COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)); _snowflock; printf '%s\\n' "\${COMPREPLY[@]}"`;
  const options = { cwd: join(directory, 'here') };
  const { stdout } = await run(
    'bash',
    ['--norc', '-c', program, 'bash', scriptOf('bash'), ...words],
    options,
  );
  return stdout.split('\n').filter((word) => word !== '');
}

async function inFish(line: string): Promise<string[]> {
  const program = `source ${scriptOf('fish')}; complete -C ${JSON.stringify(line)}`;
  const options = { cwd: join(directory, 'here'), env: { ...process.env, HOME: directory } };
  const { stdout } = await run('fish', ['--no-config', '-c', program], options);
  return stdout.split('\n').flatMap((word) => word.split('\t')[0] || []);
}

/** Types lines into a shell on a terminal, until it has said `until`. */
function typed(shell: readonly string[], lines: readonly string[], until: RegExp): Promise<string> {
  const child = spawn('script', ['-qec', shell.join(' '), '/dev/null'], {
    cwd: join(directory, 'here'),
    env: { ...process.env, HOME: directory, TERM: 'dumb', PS1: '> ' },
  });
  return new Promise((resolve, reject) => {
    let said = '';
    const late = setTimeout(
      () => end(() => reject(new Error(`not said: ${until.source}; but: ${said}`))),
      15_000,
    );
    const end = (settle: () => void): void => {
      clearTimeout(late);
      child.kill('SIGKILL');
      settle();
    };
    child.once('error', reject);
    child.stdout.on('data', (chunk: Buffer) => {
      said += chunk.toString();
      const found = until.exec(said);
      if (found) end(() => resolve(found[1] ?? ''));
    });
    child.stdin.on('error', () => undefined);
    child.stdin.write(lines.map((line) => `${line}\n`).join(''));
  });
}

const CASES: readonly (readonly [line: string, offers: readonly string[]])[] = [
  ['snowflock lab ', ['down', 'status', 'up']],
  ['snowflock lab u', ['up']],
  ['snowflock lab up --ho', ['--hosts']],
  ['snowflock lab up --hosts 2 --r', ['--ram']],
  ['snowflock image build mi', ['micro']],
  ['snowflock cert issue me --role ', ['operator', 'read-only']],
  ['snowflock completion z', ['zsh']],
  ['sfseed se', ['seed.cfg']],
  ['sfseed --socket se', ['seed.cfg']],
  ['sfstate --j', ['--json']],
  ['sfld sta', ['start', 'status']],
  ['sfld stop --v', ['--vms']],
  ['sfmd stop --v', ['--vms-per-cluster', '--vms-per-host']],
  ['sfmd start --max-cl', ['--max-clusters']],
  ['snowflock exec 0:0 -- --he', []],
];

describe.skipIf(!haveTools('bash', 'script'))('completion in bash', () => {
  it.each(CASES)('%s', async (line, offers) => {
    expect((await inBash(line)).sort()).toEqual(offers);
  });

  it('completes what is typed on a terminal', async () => {
    const lines = ['snowflock() { echo "got <$*>"; }', `source ${scriptOf('bash')}`, 'snowflock lab do\t'];
    expect(await typed(['bash', '--norc', '-i'], lines, /\ngot <(.*)>/)).toBe('lab down');
  });
});

describe.skipIf(!haveTools('zsh', 'script'))('completion in zsh', () => {
  it.each([
    ['snowflock lab do\t', 'lab down'],
    ['snowflock image build mi\t', 'image build micro'],
    ['snowflock lab up --hos\t3 --ra\t1G', 'lab up --hosts 3 --ram 1G'],
    ['sfseed se\t', 'seed.cfg'],
  ])('%j', async (line, completed) => {
    const lines = [
      'autoload -U compinit && compinit -u -D',
      'snowflock sfseed() { echo "got <$*>"; }',
      `source ${scriptOf('zsh')}`,
      line,
    ];
    expect(await typed(['zsh', '-f', '-i'], lines, /\ngot <(.*)>/)).toBe(completed);
  });
});

describe.skipIf(!haveTools('fish'))('completion in fish', () => {
  it.each(CASES.filter(([line]) => !line.endsWith('--he')))('%s', async (line, offers) => {
    expect((await inFish(line)).sort()).toEqual(offers);
  });
});
