// The keeper of a job (guest/jobs) against a played host: what it gives back, and when.

import { existsSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { describe, expect, it } from 'vitest';
import { eventually } from '../../../tests/support/deadline.ts';
import { AgentBench, asAsked, guestTools, type Finished } from './agent-bench.ts';
import { testIdentity } from './host-side.ts';
import { haveTools } from './needs.ts';

const able = haveTools('gcc', 'make', 'python3');
const tools = guestTools({ able });
const T = '11111111-2222-3333-4444-555555555555';
const GUEST = join(import.meta.dirname, '../..');
const WAIT_MS = 10_000;

const JOB = `
import os, sys, time
from sfjobs.keeper import Keeper
from sfjobs.wire import JobError
keeper = Keeper("job")
print(keeper.directory, flush=True)
try:
    print(*keeper.request(3, True, 2), flush=True)
except JobError as error:
    print(error)
if sys.argv[1] == "stay":
    time.sleep(600)
print(keeper.give_back(os.pipe()[0]))
`;

interface Job {
  readonly bench: AgentBench;
  readonly directory: string;
  readonly done: Promise<Finished>;
  kill(): void;
}

/** The job has its directory, and asks for a ticket. */
async function start(bench: AgentBench, what: 'stay' | 'end'): Promise<Job> {
  const env = {
    PYTHONPATH: `${join(GUEST, 'jobs')}:${join(GUEST, 'python')}`,
    PYTHONDONTWRITEBYTECODE: '1',
  };
  const { child, done } = bench.start('/usr/bin/env', ['python3', '-c', JOB, what], { env });
  const directory = await new Promise<string>((resolve) => {
    createInterface(child.stdout!).once('line', resolve);
  });
  expect(statSync(directory).mode & 0o777).toBe(0o700);
  return { bench, directory, done, kill: () => child.kill('SIGKILL') };
}

async function answer(job: Job, question: string, reply: string): Promise<void> {
  const call = await job.bench.host.nextCall();
  expect(asAsked(call.text)).toBe(question);
  job.bench.host.send('reply', call.id, reply);
}

async function expectGone({ directory }: Job): Promise<void> {
  await eventually(WAIT_MS, 'the directory to go', () => {
    expect(existsSync(directory)).toBe(false);
  });
}

const REQUEST = 'request_clone_ticket 3 1 2 0';

describe.skipIf(!able)('the keeper of a job', () => {
  const withBench = (): Promise<AgentBench> => AgentBench.start(tools.directory, testIdentity());

  it('merges the ticket and removes the directory before the job ends', async () => {
    await using bench = await withBench();
    const job = await start(bench, 'end');
    await answer(job, REQUEST, `ok 2 ${T}`);
    await answer(job, 'list_tickets', `ok unused outstanding ${T}`);
    expect(existsSync(job.directory)).toBe(true);
    await answer(job, `merge_master ${T}`, 'ok');
    expect(await job.done).toEqual({
      status: 0,
      stdout: `${job.directory}\n${T} 2\nTrue\n`,
      stderr: '',
    });
    await expectGone(job);
  });

  it('has no ticket to give back when there was none, or none could be asked for', async () => {
    for (const [reply, said] of [
      ['ok 0 -', 'None 0'],
      ['err busy too many tickets', 'busy: too many tickets'],
    ] as const) {
      await using bench = await withBench();
      const job = await start(bench, 'end');
      await answer(job, REQUEST, reply);
      expect((await job.done).stdout).toBe(`${job.directory}\n${said}\nTrue\n`);
      expect(bench.host.waiting('call')).toBe(0);
      await expectGone(job);
    }
  });

  it('does it when the job is killed', async () => {
    await using bench = await withBench();
    const job = await start(bench, 'stay');
    await answer(job, REQUEST, `ok 3 ${T}`);
    job.kill();
    await answer(job, 'list_tickets', `ok unused outstanding ${T}`);
    await answer(job, `wait_clones ${T} - 10000 - -`, 'ok 0 +0');
    await answer(job, `merge_master ${T}`, 'ok');
    await expectGone(job);
    await job.done;
  });

  it('disposes a ticket that is granted when the job was killed already', async () => {
    await using bench = await withBench();
    const job = await start(bench, 'stay');
    const call = await bench.host.nextCall();
    job.kill();
    bench.host.send('reply', call.id, `ok 3 ${T}`);
    await answer(job, 'list_tickets', `ok unused ${T} outstanding`);
    await answer(job, `dispose_ticket ${T}`, 'ok');
    await expectGone(job);
    await job.done;
  });

  it('says nothing of a merge that was interrupted and has happened', async () => {
    await using bench = await withBench();
    const job = await start(bench, 'end');
    await answer(job, REQUEST, `ok 3 ${T}`);
    await answer(job, 'list_tickets', `ok unused outstanding ${T}`);
    await answer(job, `merge_master ${T}`, 'err interrupted ask again');
    await answer(job, 'list_tickets', 'ok unused outstanding');
    await answer(job, `merge_master ${T}`, 'err ticket-used merged before');
    expect(await job.done).toMatchObject({ status: 0, stderr: '' });
    await expectGone(job);
  });

  it('tries again while the host is away, and says what is left when it is refused', async () => {
    await using bench = await withBench();
    const job = await start(bench, 'end');
    await answer(job, REQUEST, `ok 3 ${T}`);
    await answer(job, 'list_tickets', 'err unavailable no host');
    await answer(job, 'list_tickets', `ok unused outstanding ${T}`);
    await answer(job, `merge_master ${T}`, 'err forbidden not yours');
    expect(await job.done).toMatchObject({
      status: 0,
      stderr: `job: the clones of ticket ${T} may be left (sfmerge ${T}): forbidden: not yours\n`,
    });
    await expectGone(job);
  });
});
