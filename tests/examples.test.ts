// The examples for guests, against a played host: as the VM that forks, and as each of its clones.

import { execFileSync } from 'node:child_process';
import { copyFileSync, mkdirSync, mkdtempSync, rmSync, symlinkSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { AgentBench, asAsked, guestTools } from '../guest/image/test/agent-bench.ts';
import { testIdentity } from '../guest/image/test/host-side.ts';
import { haveTools } from '../guest/image/test/needs.ts';

const ROOT = join(import.meta.dirname, '..');
const EXAMPLES = join(ROOT, 'examples');
const T = '11111111-2222-3333-4444-555555555555';
const VMIDS = [5, 6];
/** Below 20,000. */
const PRIMES = 2262;

const able = haveTools('gcc', 'make', 'python3');
const tools = guestTools({ able });
const dir = mkdtempSync(join(tmpdir(), 'sf-examples-'));
afterAll(() => rmSync(dir, { recursive: true }));
beforeAll(() => {
  if (!able) return;
  const source = join(EXAMPLES, 'parallel-map/parallel_map.c');
  const flags = ['-O2', '-Wall', '-Wextra', '-Werror', `-I${tools.directory}`, `-L${tools.directory}`];
  execFileSync('gcc', [...flags, '-o', join(dir, 'parallel_map'), source, '-l:libsf.a', '-lm']);
  // As `npm link snowflock` does.
  mkdirSync(join(dir, 'node_modules'));
  symlinkSync(join(ROOT, 'guest/typescript'), join(dir, 'node_modules/snowflock'));
  copyFileSync(join(EXAMPLES, 'parallel-map/parallel-map.mts'), join(dir, 'parallel-map.mts'));
}, 120_000);

type Program = readonly [string, readonly string[]];
const python = (file: string, ...args: string[]): Program => [
  '/usr/bin/env',
  [
    `PYTHONPATH=${join(ROOT, 'guest/python')}`,
    'PYTHONDONTWRITEBYTECODE=1',
    'python3',
    join(EXAMPLES, file),
    ...args,
  ],
];
const PARALLEL_MAPS: Record<string, () => Program> = {
  Python: () => python('parallel-map/parallel_map.py', '2', '20000'),
  C: () => [join(dir, 'parallel_map'), ['2', '20000']],
  TypeScript: () => [process.execPath, [join(dir, 'parallel-map.mts'), '2', '20000']],
};

/** Until the fork, which returns `vmid`. */
async function fork(
  bench: AgentBench,
  [file, args]: Program,
  vmid: number,
): Promise<ReturnType<AgentBench['start']>> {
  const program = bench.start(file, args);
  for (const [words, reply] of [
    ['request_clone_ticket 2 0 1 1', `ok 2 ${T}`],
    [`read_ticket_info ${T}`, `ok ${T} ${VMIDS.map((each) => `${each}:1`).join(' ')}`],
    [`clone_master ${T}`, `ok 2 ${vmid}`],
  ] as const) {
    const { id, text } = await bench.host.nextCall(20_000);
    expect(asAsked(text)).toBe(words);
    bench.host.send('reply', id, reply);
  }
  return program;
}

/** What the program returns as a clone. */
async function resultOf(bench: AgentBench, program: Program, vmid: number): Promise<Buffer> {
  const { child, done } = await fork(bench, program, vmid);
  const { id, text } = await bench.host.nextCall(20_000);
  const size = Number(/^ic_exit 0 \+(\d+)$/.exec(text)?.[1]);
  const parts: Buffer[] = [];
  for (let have = 0; have < size; have += parts.at(-1)?.length ?? 0)
    parts.push((await bench.host.next('callData', 5000, id)).payload);
  child.kill('SIGKILL'); // a clone is destroyed in its call
  await done;
  return Buffer.concat(parts);
}

/** What the program prints that forked. */
async function joined(bench: AgentBench, program: Program, records: readonly Buffer[]): Promise<unknown> {
  const { done } = await fork(bench, program, 0);
  const { id, text } = await bench.host.nextCall(20_000);
  expect(text).toBe(`wait_clones ${T} - - - -`);
  const bytes = Buffer.concat(records);
  bench.host.send('reply', id, `ok ${VMIDS.length} +${bytes.length}`);
  await bench.host.replyData(id, bytes);
  const merge = await bench.host.nextCall();
  expect(merge.text).toBe(`merge_master ${T}`);
  bench.host.send('reply', merge.id, 'ok');
  const { stdout, stderr, status } = await done;
  expect([stderr, status]).toEqual(['', 0]);
  return JSON.parse(stdout);
}

const exited = (vmid: number, result: Buffer): Buffer =>
  Buffer.concat([Buffer.from(`${vmid} exited 0 ${result.length} ic_exit\n`), result]);

describe.skipIf(!able)('examples', () => {
  const start = (): Promise<AgentBench> => AgentBench.start(tools.directory, testIdentity());

  it.each(Object.keys(PARALLEL_MAPS))('parallel map in %s', async (language) => {
    const program = PARALLEL_MAPS[language]?.() ?? ['', []];
    await using bench = await start();
    const [first = Buffer.alloc(0), second = Buffer.alloc(0)] = [
      await resultOf(bench, program, 5),
      await resultOf(bench, program, 6),
    ];
    expect(await joined(bench, program, [exited(5, first), exited(6, second)])).toMatchObject({
      primes: PRIMES,
    });
    // What a clone did not finish is done by the VM that forked.
    const lost = Buffer.from('6 lost 0 0 its host is gone\n');
    expect(await joined(bench, program, [exited(5, first), lost])).toMatchObject({ primes: PRIMES });
  });
});
