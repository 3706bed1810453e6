// The commands and the C and Python interfaces against a played host.

import { execFileSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { AgentBench, guestTools } from './agent-bench.ts';
import { testIdentity } from './host-side.ts';
import { haveTools } from './needs.ts';

const able = haveTools('gcc', 'make', 'python3');
const tools = guestTools({ able });
const T = '11111111-2222-3333-4444-555555555555';
const U = '99999999-2222-3333-4444-555555555555';

/** Uses every call of sf.h the way a program of 2008 would. */
const C_PROGRAM = `
#include <stdio.h>
#include <string.h>
#include "sf.h"
static void list(const char *name, struct sf_ticket_list *t) { printf("%s", name); for (; t; t = t->next) printf(" %s", t->ticket); puts(""); }
int main(void) {
	char t[] = "${T}";
	struct sf_result *r = REQUEST_CLONE_TICKET(3, 1, 2, 0);
	printf("%d %s\\n", r->rc.allowed_clones, r->ticket); FREE_SF_RES(r);
	r = REQUEST_VM_TICKET(2); printf("%d '%s'\\n", r->rc.allowed_clones, r->ticket); FREE_SF_RES(r);
	r = REQUEST_PROC_TICKET(4); printf("%p %s\\n", (void *)r, sf_last_error()); FREE_SF_RES(r);
	r = LIST_TICKETS(); list("unused", r->unused_tickets); list("outstanding", r->outstanding_tickets); FREE_SF_RES(r);
	r = READ_TICKET_INFO(t); printf("%s", r->ticket);
	for (struct sf_clone_info *i = r->clone_list; i; i = i->next) printf(" %d:%d", i->vmid, i->processors);
	puts(""); FREE_SF_RES(r);
	DISPOSE_TICKET(t); printf("dispose '%s'\\n", sf_last_error());
	r = CLONE_MASTER(t); printf("%d %d\\n", r->rc.number_clones, r->vmid); FREE_SF_RES(r);
	printf("%d", MERGE_MASTER(t)); printf(" %d", MERGE_MASTER(NULL)); MERGE_ALL();
	printf(" %d", IC_KILL(t)); IC_JOIN(t); printf(" '%s'", sf_last_error());
	printf(" %d %d\\n", IC_EXIT() != 0, SHUTDOWN_CLUSTER() != 0);
	r = CLONE_MASTER("two words"); printf("%p %s\\n", (void *)r, sf_last_error());
	r = CLONE_MASTER(NULL); printf("%p %s\\n", (void *)r, sf_last_error());
	return 0;
}`;
const C_REPLIES = [
  `ok 2 ${T}`,
  'ok 0 -',
  'err no-resources nothing is free',
  `ok unused ${T} ${U} outstanding ${U}`,
  `ok ${T} 1:2 2:1`,
  'ok',
  'ok 3 0',
  'ok',
  'err ticket-unused no clones',
  'ok',
  'ok',
  'ok',
  'err not-clone this is the master VM',
  'err tickets-outstanding merge first',
];

beforeAll(() => {
  if (!able) return;
  writeFileSync(join(tools.directory, 'all.c'), C_PROGRAM);
  for (const [name, ...link] of [
    ['with-so', '-lsf', `-Wl,-rpath,${tools.directory}`],
    ['with-a', '-l:libsf.a'],
  ] as const)
    execFileSync(
      'gcc',
      ['-Wall', '-Werror', `-I${tools.directory}`, 'all.c', `-L${tools.directory}`, ...link, '-o', name],
      {
        cwd: tools.directory,
      },
    );
}, 120_000);
const start = (): Promise<AgentBench> => AgentBench.start(tools.directory, testIdentity());

describe.skipIf(!able)('libsf', () => {
  it.each(['with-so', 'with-a'])('makes every call (%s)', async (program) => {
    await using bench = await start();
    const { stdout, calls, status } = await bench.answering(C_REPLIES, program, []);
    expect(stdout.split('\n')).toEqual([
      `2 ${T}`,
      "0 ''",
      '(nil) no-resources: nothing is free',
      `unused ${T} ${U}`,
      `outstanding ${U}`,
      `${T} 1:2 2:1`,
      "dispose ''",
      '3 0',
      "0 -1 0 '' 1 1",
      '(nil) bad-request: not a ticket',
      '(nil) bad-request: not a ticket',
      '',
    ]);
    expect(calls).toEqual([
      'request_clone_ticket 3 1 2 0',
      'request_clone_ticket 2 0 -1 1',
      'request_clone_ticket 4 1 -1 1',
      'list_tickets',
      `read_ticket_info ${T}`,
      `dispose_ticket ${T}`,
      `clone_master ${T}`,
      `merge_master ${T}`,
      'merge_master *',
      'merge_master *',
      `ic_kill ${T}`,
      `ic_join ${T}`,
      // gcc evaluates the arguments of one printf from the last to the first
      'shutdown_cluster',
      'ic_exit',
    ]);
    expect(status).toBe(0);
  });

  it('does not trust the answers', async () => {
    await using bench = await start();
    for (const nonsense of ['ok', 'ok x y', 'what', '', `ok 1 ${'t'.repeat(40)} `.repeat(800)]) {
      const { stderr, status } = await bench.answering([nonsense], 'sfdoclone', [T]);
      expect(status).toBe(1);
      expect(stderr).toMatch(/^sfdoclone: internal: /);
    }
  });
});

describe.skipIf(!able)('commands', () => {
  it('sfdotix prints the grant and the ticket', async () => {
    await using bench = await start();
    const granted = await bench.answering([`ok 1 ${T}`], 'sfdotix', ['1']);
    expect(granted).toMatchObject({
      status: 0,
      stdout: `Requested 1 clones, 1 allocations received.\nTicket is ${T}\n`,
      calls: ['request_clone_ticket 1 0 0 0'],
    });
    const none = await bench.answering(['ok 0 -'], 'sfdotix', ['3']);
    expect(none).toMatchObject({ status: 1, stdout: 'Requested 3 clones, 0 allocations received.\n' });
  });

  it('sfdoclone and sfclone speak as master VM or clone', async () => {
    await using bench = await start();
    const master = await bench.answering([`ok 2 0`], 'sfdoclone', [T]);
    expect(master).toMatchObject({ status: 0, stdout: 'I am the master with 2 clones (original VM).\n' });
    const clone = await bench.answering([`ok 2 ${T}`, 'ok 2 2'], 'sfclone', ['2']);
    expect(clone).toMatchObject({
      status: 0,
      stdout: `Requested 2 clones, 2 allocations received.\nTicket is ${T}\nI am clone 2 (cloned VM).\n`,
    });
    expect(await bench.answering(['ok 0 -'], 'sfclone', ['2'])).toMatchObject({ status: 1 });
    expect(await bench.answering(['err ticket-used it is'], 'sfdoclone', [T])).toMatchObject({
      status: 1,
      stderr: 'sfdoclone: ticket-used: it is\n',
    });
  });

  it('sfmerge merges one ticket or all', async () => {
    await using bench = await start();
    const one = await bench.answering(['ok'], 'sfmerge', [T]);
    expect(one.stdout).toBe(`Attempting to merge virtual cluster...\nSuccessful merge for ticket ${T}\n`);
    expect((await bench.answering(['ok'], 'sfmerge', [''])).calls).toEqual(['merge_master *']);
  });

  it.each([
    ['sfclone', ['0']],
    ['sfclone', ['-1']],
    ['sfclone', ['abc']],
    ['sfclone', ['1', '2']],
    ['sfclone', []],
    ['sfdotix', ['1x']],
    ['sfdotix', ['99999999999']],
    ['sfdoclone', []],
    ['sfdoclone', ['']],
    ['sfmerge', []],
    ['sfshutdown', ['now']],
  ])('%s %j is a usage error', async (program, args) => {
    await using bench = await start();
    const { status, stderr } = await bench.run(program, args);
    expect(status).toBe(2);
    expect(stderr).toContain(`usage: ${program}`);
    expect(bench.host.waiting('call')).toBe(0);
  });

  it('explain themselves, also without an agent', async () => {
    await using bench = await start();
    expect((await bench.run('sfmerge', ['--help'])).stdout).toContain('usage: sfmerge TICKET');
    const lost = await bench.run('sfclone', ['1'], { env: { SNOWFLOCK_AGENT_SOCKET: '/nowhere' } });
    expect(lost).toMatchObject({ status: 1 });
    expect(lost.stderr).toContain('cannot reach the SnowFlock agent at /nowhere');
  });
});

describe.skipIf(!able)('python', () => {
  it('makes every call', async () => {
    await using bench = await start();
    const [program, args] = bench.python(`
import snowflock
T = "${T}"
def attempt(f, *a):
    try:
        return f(*a)
    except snowflock.SnowflockError as e:
        return e.code
ticket, allowed = snowflock.request_clone_ticket(3, True, 2, False)
print(ticket, allowed)
print(tuple(snowflock.request_vm_ticket(2)))
print(attempt(snowflock.request_proc_ticket, 4))
print(snowflock.list_tickets())
print([tuple(i) for i in snowflock.read_ticket_info(T)])
print(snowflock.dispose_ticket(T))
nclones, vmid = snowflock.clone_master(T)
print(nclones, vmid)
print(snowflock.merge_master(T), attempt(snowflock.merge_master, None), snowflock.merge_all(), snowflock.ic_kill(T), snowflock.ic_join(T))
print(attempt(snowflock.ic_exit), attempt(snowflock.shutdown_cluster))
print(attempt(snowflock.clone_master, "two words"), attempt(snowflock.ic_join, None), snowflock.whoami())
`);
    const { stdout, stderr, calls } = await bench.answering(C_REPLIES, program, args);
    expect(stderr).toBe('');
    expect(stdout.split('\n')).toEqual([
      `${T} 2`,
      '(None, 0)',
      'no-resources',
      `{'unused': ['${T}', '${U}'], 'outstanding': ['${U}']}`,
      '[(1, 2), (2, 1)]',
      'None',
      '3 0',
      'None ticket-unused None None None',
      'not-clone tickets-outstanding',
      'bad-request bad-request (7, 0)',
      '',
    ]);
    expect(calls.slice(0, 3)).toEqual([
      'request_clone_ticket 3 1 2 0',
      'request_clone_ticket 2 0 -1 1',
      'request_clone_ticket 4 1 -1 1',
    ]);
  });
});
