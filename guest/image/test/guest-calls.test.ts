// The calls of the agent socket in C, Python and TypeScript, all against packages/protocol/vectors/guest-calls.json: the line that
// each call becomes, what its answer means, and what is refused before anything is sent.

import { execFileSync } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { beforeAll, describe, expect, it } from 'vitest';
import { z } from 'zod';
import { ERROR_CODES } from '@snowflock/protocol';
import { AgentBench, guestTools } from './agent-bench.ts';
import { C_CALLS, NODE_CALLS, PYTHON_CALLS } from './guest-calls-programs.ts';
import { testIdentity } from './host-side.ts';
import { haveTools } from './needs.ts';

const ROOT = join(import.meta.dirname, '../../..');
const MODULE = join(ROOT, 'guest/typescript/snowflock.mjs');
const VECTORS = join(ROOT, 'packages/protocol/vectors/guest-calls.json');
const T = '11111111-2222-3333-4444-555555555555';

const code = z.enum(ERROR_CODES);
const Vectors = z.object({
  calls: z.array(
    z.object({
      call: z.string(),
      args: z.array(z.union([z.string(), z.number(), z.boolean(), z.null()])),
      /** null: nothing is sent. */
      line: z.string().nullable(),
      reply: z.string().nullable(),
      error: code.optional(),
      result: z.unknown().optional(),
    }),
  ),
  /** Values of a type that C's compiler refuses by itself. */
  wrongTypes: z.array(z.object({ call: z.string(), args: z.array(z.unknown()), error: code })),
});
const vectors = Vectors.parse(JSON.parse(readFileSync(VECTORS, 'utf8')));
const expected = vectors.calls.map(({ error, result }) => (error ? { error } : { result }));
const lines = vectors.calls.flatMap(({ line }) => line ?? []);
const replies = vectors.calls.flatMap(({ reply }) => reply ?? []);

const able = haveTools('gcc', 'make', 'python3');
const tools = guestTools({ able });
const start = (): Promise<AgentBench> => AgentBench.start(tools.directory, testIdentity());
const parsed = (stdout: string): unknown[] =>
  stdout
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as unknown);
const node = (program: string, ...args: string[]): [string, string[]] => [
  process.execPath,
  ['--input-type=module', '-e', program, pathToFileURL(MODULE).href, ...args],
];

beforeAll(() => {
  if (!able) return;
  writeFileSync(join(tools.directory, 'calls.c'), C_CALLS);
  const flags = ['-Wall', '-Werror', `-I${tools.directory}`, `-L${tools.directory}`];
  execFileSync('gcc', [...flags, 'calls.c', '-l:libsf.a', '-o', 'calls'], { cwd: tools.directory });
  // The C program gets words: a call and its arguments a line, separated by tabs; '\\' is NULL.
  const words = vectors.calls.map(({ call, args }) =>
    [call, ...args.map((arg) => (arg === null ? '\\' : String(arg).replace('\n', '\v')))].join('\t'),
  );
  writeFileSync(join(tools.directory, 'calls.txt'), `${words.join('\n')}\n`);
}, 120_000);

describe.skipIf(!able)('the calls of the agent socket', () => {
  it.each(['C', 'Python', 'TypeScript'])(
    'are made and understood as the vectors say, in %s',
    async (language) => {
      await using bench = await start();
      const [program, args] =
        language === 'C'
          ? [join(tools.directory, 'calls'), [join(tools.directory, 'calls.txt')]]
          : language === 'Python'
            ? bench.python(PYTHON_CALLS, VECTORS, 'calls')
            : node(NODE_CALLS, VECTORS, 'calls');
      const { stdout, stderr, calls, status } = await bench.answering(replies, program, args);
      expect(stderr).toBe('');
      expect(calls).toEqual(lines);
      expect(parsed(stdout)).toEqual(expected);
      expect(status).toBe(0);
    },
  );

  it.each(['Python', 'TypeScript'])('refuse arguments of a wrong type, in %s', async (language) => {
    await using bench = await start();
    const [program, args] =
      language === 'Python'
        ? bench.python(PYTHON_CALLS, VECTORS, 'wrongTypes')
        : node(NODE_CALLS, VECTORS, 'wrongTypes');
    const { stdout, stderr } = await bench.answering([], program, args);
    expect(stderr).toBe('');
    expect(parsed(stdout)).toEqual(vectors.wrongTypes.map(({ error }) => ({ error })));
    expect(bench.host.waiting('call')).toBe(0);
  });
});

describe.skipIf(!able)('the TypeScript module', () => {
  const program = (body: string): [string, string[]] =>
    node(`const sf = await import(process.argv[1]); const T = '${T}';
      const told = (error) => [error instanceof sf.SnowflockError, error.code, error.message, error.cause?.name ?? null];
      console.log(JSON.stringify(await (async () => { ${body} })()));`);

  it('says who it is, without its host', async () => {
    await using bench = await start();
    const { stdout } = await bench.run(...program('return sf.whoami();'));
    expect(JSON.parse(stdout)).toEqual({ clusterid: 7, vmid: 0 });
  });

  it('cancels a blocking call when its signal aborts', async () => {
    await using bench = await start();
    const { done } = bench.start(
      ...program('return sf.icJoin(T, { signal: AbortSignal.timeout(300) }).catch(told);'),
    );
    const call = await bench.host.nextCall();
    expect((await bench.host.next('cancel')).id).toBe(call.id);
    const { stdout } = await done;
    expect(JSON.parse(stdout)).toEqual([true, 'interrupted', 'the call was cancelled', 'TimeoutError']);
  });

  it('sends nothing when its signal has aborted before', async () => {
    await using bench = await start();
    const { stdout } = await bench.run(
      ...program('return sf.mergeAll({ signal: AbortSignal.abort() }).catch(told);'),
    );
    expect(JSON.parse(stdout)).toMatchObject([true, 'interrupted', {}, 'AbortError']);
    expect(bench.host.waiting('call')).toBe(0);
  });

  it('makes calls at the same time, each with its own answer', async () => {
    await using bench = await start();
    const { done } = bench.start(
      ...program(`return Promise.all(['a', 'b', 'c'].map((t) => sf.readTicketInfo(t)));`),
    );
    const calls = [await bench.host.nextCall(), await bench.host.nextCall(), await bench.host.nextCall()];
    for (const { id, text } of calls.reverse())
      bench.host.send('reply', id, `ok ${text.slice(-1)} ${text.charCodeAt(text.length - 1)}:1`);
    const { stdout } = await done;
    expect(JSON.parse(stdout)).toEqual([97, 98, 99].map((vmid) => [{ vmid, processors: 1 }]));
  });

  it('explains an agent that cannot be reached, and one that goes away', async () => {
    await using bench = await start();
    const body = 'return sf.icJoin(T).catch(told);';
    const lost = await bench.run(...program(body), { env: { SNOWFLOCK_AGENT_SOCKET: '/nowhere' } });
    const [, unreachable, message] = z.array(z.unknown()).parse(JSON.parse(lost.stdout));
    expect(unreachable).toBe('unavailable');
    expect(message).toContain('cannot reach the SnowFlock agent at /nowhere');
    const { done } = bench.start(...program(body));
    await bench.host.nextCall();
    bench.killAgent();
    const { stdout } = await done;
    expect(JSON.parse(stdout)).toEqual([
      true,
      'unavailable',
      'the SnowFlock agent closed the connection',
      'Error',
    ]);
  });

  const received = async (bench: AgentBench, id: number, sizeBytes: number): Promise<Buffer> => {
    const parts: Buffer[] = [];
    for (let have = 0; have < sizeBytes; have += parts.at(-1)?.length ?? 0) {
      parts.push((await bench.host.next('callData', 15_000, id)).payload);
      bench.host.grant(id, parts.at(-1)?.length ?? 0, 'callCredit');
    }
    return Buffer.concat(parts);
  };

  it('exits with a status and the bytes of an array, a file, and a file without a size', async () => {
    await using bench = await start();
    const bytes = Buffer.from(Array.from({ length: 900_001 }, (_, at) => at % 251));
    writeFileSync(join(tools.directory, 'result'), bytes);
    const file = join(tools.directory, 'result');
    for (const [options, size] of [
      ['{ status: 4, result: Uint8Array.from({ length: 900_001 }, (_, at) => at % 251) }', bytes.length],
      [`{ status: 4, resultFile: '${file}' }`, bytes.length],
      [`{ status: 4, resultFile: '/proc/sys/kernel/ostype' }`, 6],
    ] as const) {
      const { done } = bench.start(...program(`return sf.icExit(${options}).then(() => 'gone', told);`));
      const { id, text } = await bench.host.nextCall();
      expect(text).toBe(`ic_exit 4 +${size}`);
      const got = await received(bench, id, size);
      expect(size === bytes.length ? got.equals(bytes) : got.toString()).toBe(
        size === bytes.length || 'Linux\n',
      );
      bench.host.send('reply', id, 'ok');
      const { stdout, stderr } = await done;
      expect([stdout, stderr]).toEqual(['"gone"\n', '']);
    }
  });

  it('stops sending when the reply comes before all bytes have', async () => {
    await using bench = await start();
    const { done } = bench.start(
      ...program('return sf.icExit({ result: new Uint8Array(30_000_000) }).catch(told);'),
    );
    const { id } = await bench.host.nextCall();
    bench.host.send('reply', id, 'err result-too-large less, please');
    expect(JSON.parse((await done).stdout)).toEqual([true, 'result-too-large', 'less, please', null]);
  });

  it('refuses results that cannot be sent', async () => {
    await using bench = await start();
    const attempts = [
      "{ result: 'text' }",
      "{ resultFile: '/nowhere' }",
      "{ resultFile: '/' }",
      '{ resultFile: 7 }',
      "{ result: new Uint8Array(1), resultFile: '/dev/null' }",
    ];
    const { stdout } = await bench.run(
      ...program(
        `return Promise.all([${attempts.map((each) => `sf.icExit(${each}).catch((error) => error.code)`).join(', ')}]);`,
      ),
    );
    expect(JSON.parse(stdout)).toEqual(attempts.map(() => 'bad-request'));
    expect(bench.host.waiting('call')).toBe(0);
  });

  it('joins, and gives how each clone ended with what it returned', async () => {
    await using bench = await start();
    const options = '{ count: 2, deadline: 1.5, budgetSeconds: 60, budgetBytes: 1000 }';
    const body = `return [...await sf.join(T, ${options})].map(([id, { result, ...rest }]) => [id, rest, result.length, result.every((each) => each === id)]);`;
    const { done } = bench.start(...program(body));
    const { id, text } = await bench.host.nextCall();
    expect(text).toBe(`wait_clones ${T} 2 1500 60000 1000`);
    const records = Buffer.concat([
      Buffer.from('1 exited 7 700000 ic_exit\n'),
      Buffer.alloc(700_000, 1),
      Buffer.from('2 lost 0 0 its host is gone\n3 ended 0 3 enough\n'),
      Buffer.alloc(3, 3),
    ]);
    bench.host.send('reply', id, `ok 3 +${records.length}`);
    await bench.host.replyData(id, records);
    const merge = await bench.host.nextCall();
    expect(merge.text).toBe(`merge_master ${T}`);
    bench.host.send('reply', merge.id, 'ok');
    expect(JSON.parse((await done).stdout)).toEqual([
      [1, { vmid: 1, how: 'exited', status: 7, reason: 'ic_exit' }, 700_000, true],
      [2, { vmid: 2, how: 'lost', status: null, reason: 'its host is gone' }, 0, true],
      [3, { vmid: 3, how: 'ended', status: null, reason: 'enough' }, 3, true],
    ]);
  });

  it.each([
    ['that make no sense', '1 what 0 0 x\n', 'internal'],
    ['that break off', '1 exited 0 900 x\nhalf', 'unavailable'],
  ])('fails at outcomes %s, and merges nothing', async (_what, records, code) => {
    await using bench = await start();
    const { done } = bench.start(...program('return sf.join(T).catch((error) => error.code);'));
    const { id } = await bench.host.nextCall();
    bench.host.send('reply', id, `ok 1 +${records.length + (code === 'unavailable' ? 896 : 0)}`);
    await bench.host.replyData(id, Buffer.from(records));
    if (code === 'unavailable') bench.killAgent();
    expect(JSON.parse((await done).stdout)).toBe(code);
    expect(bench.host.waiting('call')).toBe(0);
  });

  it('refuses limits of a join that are none', async () => {
    await using bench = await start();
    const attempts = [
      '{ count: 0 }',
      '{ count: 1.5 }',
      "{ count: '1' }",
      '{ deadline: -1 }',
      '{ budgetBytes: 1e300 }',
      '{ budgetSeconds: NaN }',
    ];
    const { stdout } = await bench.run(
      ...program(
        `return Promise.all([${attempts.map((each) => `sf.join(T, ${each}).catch((error) => error.code)`).join(', ')}]);`,
      ),
    );
    expect(JSON.parse(stdout)).toEqual(attempts.map(() => 'bad-request'));
    expect(bench.host.waiting('call')).toBe(0);
  });
});
