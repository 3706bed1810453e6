// sf_exit, sf_join, ic_exit, join, sfexit and sfjoin against a played host: what they send, and what they make of the answers.

import { execFileSync } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { AgentBench, guestTools } from './agent-bench.ts';
import { testIdentity } from './host-side.ts';
import { haveTools } from './needs.ts';

const able = haveTools('gcc', 'make', 'python3');
const tools = guestTools({ able });
const T = '11111111-2222-3333-4444-555555555555';
const MIB = 1 << 20;
const RESULT = Buffer.alloc(MIB + 3, 'result ');
const start = (): Promise<AgentBench> => AgentBench.start(tools.directory, testIdentity());

const RECORDS = Buffer.concat([
  Buffer.from(`1 exited 3 ${RESULT.length} ic_exit\n`),
  RESULT,
  Buffer.from(
    '2 ended -1 0 ended by a join: 1 of 4 clones have exited\n4 lost -1 0 host b is gone\n5 exited -7 1 ic_exit\nx',
  ),
]);

const C_PROGRAM = String.raw`
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "sf.h"
int main(int argc, char **argv) {
	static const char *const names[] = {"exited", "ended", "lost"};
	if (argc == 4 && !strcmp(argv[1], "exit")) {
		size_t len = strtoul(argv[3], NULL, 10);
		char *data = malloc(len + 1);
		for (size_t i = 0; i < len; i++) data[i] = "result "[i % 7];
		printf("%d %s\n", sf_exit(atoi(argv[2]), data, len), sf_last_error());
		return 0;
	}
	sf_join_options o = {.count = 1, .deadline = 2.5, .budget_seconds = 0.0001, .budget_bytes = 4096};
	sf_outcome *all = sf_join(argv[2], argc > 3 ? &o : NULL);
	if (!all) { printf("%s\n", sf_last_error()); return 0; }
	for (sf_outcome *p = all; p; p = p->next)
		printf("%d %s %d %zu '%.3s' %s\n", p->vmid, names[p->how], p->status, p->size, (char *)p->data, p->reason);
	printf("'%s'\n", sf_last_error());
	sf_free_outcomes(all);
	return 0;
}
`;

const PYTHON = `
import sys, snowflock
try:
    if sys.argv[1] == "exit":
        snowflock.ic_exit(int(sys.argv[2]), result=(b"result " * int(sys.argv[3]))[:int(sys.argv[3])])
    elif sys.argv[1] == "file":
        snowflock.ic_exit(status=1, result_file=sys.argv[2])
    else:
        limits = dict(count=1, deadline=2.5, budget_seconds=0.0001, budget_bytes=4096) if len(sys.argv) > 3 else {}
        for vmid, o in snowflock.join(sys.argv[2], **limits).items():
            print(vmid == o.vmid, o.how, o.status, len(o.result), o.result[:3], o.reason)
except snowflock.SnowflockError as error:
    print(error)
`;

beforeAll(() => {
  if (!able) return;
  writeFileSync(join(tools.directory, 'results.c'), C_PROGRAM);
  const flags = ['-Wall', '-Wextra', '-Werror', '-fsanitize=address,undefined', `-I${tools.directory}`];
  const library = ['sf', 'outcomes'].map((name) => join(import.meta.dirname, `../../c/lib/${name}.c`));
  execFileSync('gcc', [...flags, '-g', 'results.c', ...library, '-o', 'results'], { cwd: tools.directory });
}, 120_000);

describe.skipIf(!able).each(['C', 'Python'] as const)('%s', (language) => {
  const program = (bench: AgentBench, ...args: string[]): [string, string[]] => {
    if (language === 'C') return [join(tools.directory, 'results'), args];
    const [path, python] = bench.python(PYTHON);
    return [path, [...python, ...args]];
  };

  it('sends a result whole, and waits to be destroyed', async () => {
    await using bench = await start();
    const { child } = bench.start(...program(bench, 'exit', '3', String(RESULT.length)));
    const call = await bench.host.nextCall();
    expect(call.text).toBe(`ic_exit 3 +${RESULT.length}`);
    expect((await bench.host.callData(call.id, RESULT.length)).equals(RESULT)).toBe(true);
    child.kill();
    expect((await bench.host.next('cancel')).id).toBe(call.id);
  });

  it('announces no bytes where there are none', async () => {
    await using bench = await start();
    const { done } = bench.start(...program(bench, 'exit', '-7', '0'));
    const call = await bench.host.nextCall();
    expect(call.text).toBe('ic_exit -7');
    bench.host.send('reply', call.id, 'err not-clone this is the master VM');
    expect((await done).stdout).toContain('not-clone: this is the master VM');
  });

  it('is told at once that a result is too large, whatever it has still to send', async () => {
    await using bench = await start();
    const { done } = bench.start(...program(bench, 'exit', '0', String(64 * MIB)));
    const call = await bench.host.nextCall();
    bench.host.send('reply', call.id, 'err result-too-large exit with less');
    expect((await done).stdout).toContain('result-too-large: exit with less');
  });

  it('joins with outcomes, then merges', async () => {
    await using bench = await start();
    const { done } = bench.start(...program(bench, 'join', T));
    const call = await bench.host.nextCall();
    expect(call.text).toBe(`wait_clones ${T} - - - -`);
    bench.host.send('reply', call.id, `ok 4 +${RECORDS.length}`);
    await bench.host.replyData(call.id, RECORDS);
    const merge = await bench.host.nextCall();
    expect(merge.text).toBe(`merge_master ${T}`);
    bench.host.send('reply', merge.id, 'ok');
    const { stdout, stderr } = await done;
    expect(stderr).toBe('');
    expect(stdout.split('\n')).toEqual(
      language === 'C'
        ? [
            `1 exited 3 ${RESULT.length} 'res' ic_exit`,
            "2 ended -1 0 '' ended by a join: 1 of 4 clones have exited",
            "4 lost -1 0 '' host b is gone",
            "5 exited -7 1 'x' ic_exit",
            "''",
            '',
          ]
        : [
            `True exited 3 ${RESULT.length} b'res' ic_exit`,
            "True ended None 0 b'' ended by a join: 1 of 4 clones have exited",
            "True lost None 0 b'' host b is gone",
            "True exited -7 1 b'x' ic_exit",
            '',
          ],
    );
  });

  it('says its limits in whole numbers, and hands on a refusal', async () => {
    await using bench = await start();
    const { stdout, calls } = await bench.answering(
      ['err ticket-used merged before'],
      ...program(bench, 'join', T, 'limits'),
    );
    expect(calls).toEqual([`wait_clones ${T} 1 2500 1 4096`]);
    expect(stdout).toBe('ticket-used: merged before\n');
  });

  it('does not trust the answers, nor lose the results when they break off', async () => {
    await using bench = await start();
    for (const [reply, bytes] of [
      ['ok', ''],
      ['ok x', ''],
      ['ok 1 +8', 'nonsense'],
      ['ok 1 +19', '1 went 0 0 whatever\n'],
      ['ok 1 +22', '1 exited 0 -1 whatever\n'],
    ] as const) {
      const { done } = bench.start(...program(bench, 'join', T));
      const call = await bench.host.nextCall();
      bench.host.send('reply', call.id, reply);
      if (bytes !== '') bench.host.send('replyData', call.id, bytes);
      bench.host.send('replyData', call.id); // no more will come
      expect((await done).stdout).toMatch(/^(internal|interrupted|unavailable): /);
      expect(bench.host.waiting('call')).toBe(0); // nothing was merged
    }
  });
});

describe.skipIf(!able)('commands', () => {
  it('sfexit sends a file, or what it reads', async () => {
    await using bench = await start();
    const path = join(tools.directory, 'a-result');
    writeFileSync(path, RESULT);
    for (const [script, line] of [
      [`sfexit 4 ${path}`, `ic_exit 4 +${RESULT.length}`],
      [`cat ${path} | sfexit 0 -`, `ic_exit 0 +${RESULT.length}`],
    ] as const) {
      const { done } = bench.start('/bin/sh', [
        '-c',
        `${tools.directory}/${script}`
          .replace(`${tools.directory}/cat`, 'cat')
          .replace('| sfexit', `| ${tools.directory}/sfexit`),
      ]);
      const call = await bench.host.nextCall();
      expect(call.text).toBe(line);
      expect((await bench.host.callData(call.id, RESULT.length)).equals(RESULT)).toBe(true);
      bench.host.send('reply', call.id, 'err no-resources no room');
      expect(await done).toMatchObject({ status: 1, stderr: 'sfexit: no-resources: no room\n' });
    }
    expect(await bench.run('sfexit', ['0', '/no/such'])).toMatchObject({
      status: 1,
      stderr: expect.stringMatching(/^sfexit: bad-request: .*No such file/) as string,
    });
  });

  it('sfjoin prints a line for each clone, and writes the results', async () => {
    await using bench = await start();
    const directory = join(tools.directory, 'joined');
    const { done } = bench.start('sfjoin', ['--count', '1', '--deadline', '0.5', '--results', directory, T]);
    const call = await bench.host.nextCall();
    expect(call.text).toBe(`wait_clones ${T} 1 500 - -`);
    bench.host.send('reply', call.id, `ok 4 +${RECORDS.length}`);
    await bench.host.replyData(call.id, RECORDS);
    bench.host.send('reply', (await bench.host.nextCall()).id, 'ok');
    expect(await done).toEqual({
      status: 3,
      stdout: `1 exited 3 ${RESULT.length} ic_exit\n2 ended -1 0 ended by a join: 1 of 4 clones have exited\n4 lost -1 0 host b is gone\n5 exited -7 1 ic_exit\n`,
      stderr: '',
    });
    expect(readFileSync(join(directory, '1')).equals(RESULT)).toBe(true);
    expect(readFileSync(join(directory, '5'), 'utf8')).toBe('x');
  });

  it.each([
    ['sfexit', ['x']],
    ['sfexit', ['1.5']],
    ['sfexit', ['99999999999']],
    ['sfexit', ['0', 'a', 'b']],
    ['sfjoin', []],
    ['sfjoin', ['']],
    ['sfjoin', ['a', 'b']],
    ['sfjoin', ['--count', T]],
    ['sfjoin', ['--count', '0', T]],
    ['sfjoin', ['--count', '1.5', T]],
    ['sfjoin', ['--deadline', '-1', T]],
    ['sfjoin', ['--deadline', 'soon', T]],
    ['sfjoin', ['--budget-seconds', 'nan', T]],
    ['sfjoin', ['--budget-bytes', '1e400', T]],
    ['sfjoin', ['--frobnicate', '1', T]],
  ])('%s %j is a usage error', async (name, args) => {
    await using bench = await start();
    const { status, stderr } = await bench.run(name, args);
    expect(status).toBe(2);
    expect(stderr).toContain(`usage: ${name}`);
    expect(bench.host.waiting('call')).toBe(0);
  });
});
