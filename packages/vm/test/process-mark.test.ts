import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { setTimeout as sleep } from 'node:timers/promises';
import { expect, it } from 'vitest';
import { isRunning, killProcess, markProcess } from '../src/index.ts';

it('knows a process from another that has its pid', async () => {
  const child = spawn('sleep', ['60'], { stdio: 'ignore' });
  await once(child, 'spawn');
  const mark = markProcess(child.pid ?? 0);
  if (!mark) throw new Error('it runs');
  expect(isRunning(mark)).toBe(true);
  const earlier = { ...mark, startTicks: mark.startTicks - 1 };
  expect(isRunning(earlier)).toBe(false);
  killProcess(earlier);
  await sleep(50);
  expect(isRunning(mark)).toBe(true);
  killProcess(mark);
  await once(child, 'exit');
  expect(isRunning(mark)).toBe(false);
  killProcess(mark);
});

it('does not take a zombie for a process', async () => {
  // The shell's child ends; nobody waits for it as long as sleep, which took the shell's place, runs.
  const parent = spawn('sh', ['-c', 'true & echo $!; exec sleep 60'], {
    stdio: ['ignore', 'pipe', 'ignore'],
  });
  const [line] = (await once(parent.stdout, 'data')) as [Buffer];
  for (let i = 0; i < 100 && markProcess(Number(line)) !== null; i++) await sleep(10);
  expect(markProcess(Number(line))).toBe(null);
  parent.kill('SIGKILL');
});
