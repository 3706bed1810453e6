// What the agent of a clone does before the program that forked goes on: the hooks.

import { chmodSync, existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { AgentBench, guestTools, type LineClient } from './agent-bench.ts';
import { testIdentity } from './host-side.ts';
import { haveTools } from './needs.ts';

const able = haveTools('gcc', 'make', 'python3');
const tools = guestTools({ able });
const T = '11111111-2222-3333-4444-555555555555';

async function start(hooks: Readonly<Record<string, string>>): Promise<AgentBench> {
  const bench = await AgentBench.start(tools.directory, testIdentity());
  mkdirSync(bench.hooks);
  for (const [name, script] of Object.entries(hooks)) {
    writeFileSync(join(bench.hooks, name), `#!/bin/sh\n${script}\n`);
    chmodSync(join(bench.hooks, name), 0o755);
  }
  return bench;
}

/** Forks as far as the IDENTITY of clone 2. */
async function forkTo(
  bench: AgentBench,
  call = `clone_master ${T}`,
): Promise<{ id: number; caller: LineClient }> {
  const caller = bench.client();
  caller.write(`${call}\n`);
  const { id } = await bench.host.nextCall();
  bench.host.send('hold', id);
  await bench.host.next('held', 15_000, id);
  bench.host.send('identity', id, testIdentity({ vmid: 2, nclones: 3, hostname: 'clone2', ticket: T }));
  return { id, caller };
}

const settling = async (bench: AgentBench, id: number): Promise<string> =>
  (await bench.host.next('identified', 15_000, id)).payload.toString();
const reason = async (bench: AgentBench, id: number, timeoutMs = 15_000): Promise<string> =>
  (await bench.host.next('settled', timeoutMs, id)).payload.toString();

describe.skipIf(!able)('hooks', () => {
  it('run in the order of their names before the caller goes on, and know the clone', async () => {
    await using bench = await start({
      '20-second': 'echo second $SNOWFLOCK_SEED >> "$0.out"; cat "$0.out" >> ${0%/*}/../all',
      '10-first.sh':
        'sleep 0.3; set | grep "^SNOWFLOCK_" | sort >> ${0%/*}/../all; echo first $# $(cat | wc -c) >> ${0%/*}/../all',
      '.hidden': 'exit 1',
      '10-first.sh~': 'exit 1',
    });
    writeFileSync(join(bench.hooks, 'README'), 'not executable');
    mkdirSync(join(bench.hooks, 'directory'));
    const { id, caller } = await forkTo(bench);
    expect(await settling(bench, id)).toBe('settling');
    expect(await reason(bench, id)).toBe('');
    expect(await caller.line()).toBe('ok 3 2');
    expect(readFileSync(join(bench.hooks, '../all'), 'utf8').replaceAll("'", '')).toBe(
      [
        'SNOWFLOCK_CLUSTERID=7',
        'SNOWFLOCK_HOSTNAME=clone2',
        'SNOWFLOCK_IP=10.0.0.1',
        'SNOWFLOCK_NCLONES=3',
        'SNOWFLOCK_SEED=fresh',
        `SNOWFLOCK_TICKET=${T}`,
        'SNOWFLOCK_VMID=2',
        'first 0 0',
        'second fresh',
        '',
      ].join('\n'),
    );
    caller.close();
  });

  it('know that the caller wants the same random numbers', async () => {
    await using bench = await start({ a: 'echo $SNOWFLOCK_SEED > ${0%/*}/../seed' });
    const { id, caller } = await forkTo(bench, `clone_master ${T} same`);
    expect(await reason(bench, id)).toBe('');
    expect(readFileSync(join(bench.hooks, '../seed'), 'utf8')).toBe('same\n');
    caller.close();
  });

  it('that fail keep the caller from going on, and say why', async () => {
    for (const [script, said] of [
      ['echo before; echo "no key: /etc/x" >&2; echo; exit 3', 'hook b failed with status 3: no key: /etc/x'],
      ['kill -9 $$', 'hook b was ended by signal 9'],
      [
        'i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i+1)); done; exit 1',
        'hook b failed with status 1: line 2999',
      ],
    ] as const) {
      await using bench = await start({ a: 'true', b: script, c: 'touch "$0.ran"' });
      const { id, caller } = await forkTo(bench);
      expect(await reason(bench, id)).toBe(said);
      expect(existsSync(join(bench.hooks, 'c.ran'))).toBe(false);
      await expect(caller.line(300)).rejects.toThrow('no line');
      caller.close();
    }
  });

  it('that cannot be run, that are too many, or that hang', async () => {
    await using broken = await start({ a: 'true' });
    writeFileSync(join(broken.hooks, 'a'), '#!/no/such/shell\n');
    const first = await forkTo(broken);
    expect(await reason(broken, first.id)).toBe('hook a failed with status 126: No such file or directory');

    const many = Object.fromEntries(Array.from({ length: 65 }, (_, i) => [`hook${i}`, 'true']));
    await using crowded = await start(many);
    const second = await forkTo(crowded);
    expect(await reason(crowded, second.id)).toMatch(/clone\.d holds more than 64 hooks$/);

    await using hanging = await start({ a: 'sleep 100 & wait' });
    const third = await forkTo(hanging);
    expect(await reason(hanging, third.id, 12_000)).toBe('hook a did not end within 10 s');
    for (const { caller } of [first, second, third]) caller.close();
  });

  it('may leave a process running and ask the agent, but not fork', async () => {
    await using bench = await start({
      a:
        "sleep 15 & python3 -c \"import socket; s = socket.socket(socket.AF_UNIX); s.connect('${0%/*}/../agent.sock'); " +
        `s.sendall(b'whoami\\nclone_master ${T}\\n'); f = s.makefile(); print(f.readline() + f.readline())" > \${0%/*}/../said`,
    });
    // A hook has 10 s: it would be too late if the agent waited for what it left.
    const { id, caller } = await forkTo(bench);
    expect(await reason(bench, id, 12_000)).toBe('');
    expect(readFileSync(join(bench.hooks, '../said'), 'utf8')).toMatch(
      /^ok 7 2\nerr unavailable this clone runs its hooks/,
    );
    caller.close();
  });

  it('do not run in the master VM; without any the clone does not settle', async () => {
    await using bench = await start({ a: 'touch "$0.ran"' });
    const caller = bench.client();
    caller.write(`clone_master ${T}\n`);
    const { id } = await bench.host.nextCall();
    bench.host.send('hold', id);
    await bench.host.next('held', 15_000, id);
    bench.host.send('identity', id, testIdentity({ nclones: 1 }));
    bench.host.send('reply', id, 'ok 1 0');
    expect(await caller.line()).toBe('ok 1 0');
    expect(existsSync(join(bench.hooks, 'a.ran'))).toBe(false);
    caller.close();

    await using plain = await AgentBench.start(tools.directory, testIdentity());
    const fork = await forkTo(plain);
    expect(await settling(plain, fork.id)).toBe('');
    expect(await fork.caller.line()).toBe('ok 3 2');
    expect(plain.host.waiting('settled')).toBe(0);
    fork.caller.close();
  });
});
