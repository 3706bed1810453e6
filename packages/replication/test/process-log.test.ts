import { spawnSync } from 'node:child_process';
import { expect, it } from 'vitest';
import { logArguments, logLine } from '../src/process-log.ts';

const subject = { clusterid: 3, ticket: 'd4d660b0-054e-4017-8393-ad04ff1c1ff7' };

it('a line has the fields of every log of SnowFlock', () => {
  const line = logLine('memtap', subject, 'memtap: source lost: gone');
  expect(line.endsWith('}\n')).toBe(true);
  expect(JSON.parse(line)).toEqual({
    ...{ level: 'error', name: 'memtap', pid: process.pid, msg: 'source lost: gone', ...subject },
    time: expect.stringMatching(/^\d{4}-\d\d-\d\dT/) as string,
  });
});

it.each(['memserver', 'memtap'])('%s writes such lines from its first word on', (name) => {
  const main = new URL(`../src/${name}/main.ts`, import.meta.url).pathname;
  const { stderr, status } = spawnSync(process.execPath, [main, ...logArguments(subject)], {
    encoding: 'utf8',
    timeout: 10_000,
  });
  expect(status).toBe(1);
  expect(JSON.parse(stderr)).toMatchObject({
    name,
    ...subject,
    msg: expect.stringContaining('needs --control') as string,
  });
});
