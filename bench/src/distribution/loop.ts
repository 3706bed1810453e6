// The memtap's fault path against the same loop in C (bench/c/page-loop.c): CPU time of the process for each GiB that one reader faults in,
// page by page, of one memserver. No VM, and no read-ahead: every page is a READ, a request, an answer.

import { execFile, execFileSync, spawn, type ChildProcess } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { PAGE_BYTES } from '@snowflock/protocol';
import { MemserverProcess, MemtapProcess } from '@snowflock/replication';
import { figure, type Figure } from '../figures.ts';
import { cpuMs } from '../replication-processes.ts';

const run = promisify(execFile);
const CHECKOUT = join(import.meta.dirname, '../../..');
const HELPERS = join(CHECKOUT, 'packages/replication/test');
const PAGES = 65_536;
const QUICK_PAGES = 16_384;
const GIB_PAGES = 2 ** 30 / PAGE_BYTES;
/** The first is slower: V8 has not optimised what it will. */
const ROUNDS = 5;
const QUICK_ROUNDS = 3;
const SEED = 7;
const READ_TIMEOUT_MS = 120_000;
const READY_TIMEOUT_MS = 10_000;
/** As fault-client.c calls them. */
const ORDERS = { seq: 'in order', rand: 'in random order' } as const;

/** A process whose mount has the RAM as a file. */
interface Served {
  readonly name: 'memtap' | 'C';
  readonly pid: number;
  readonly ramPath: string;
}

export async function measureLoop(options: { quick: boolean; signal: AbortSignal }): Promise<Figure[]> {
  const { quick, signal } = options;
  const pages = quick ? QUICK_PAGES : PAGES;
  await using owned = new AsyncDisposableStack();
  const directory = mkdtempSync(join(tmpdir(), 'snowflock-loop-'));
  owned.defer(() => rmSync(directory, { recursive: true, force: true }));
  const faultClient = compile(join(HELPERS, 'fault-client.c'), directory);
  const served = await serveBoth(owned, { directory, pages });
  const figures: Figure[] = [];
  for (const [order, orderName] of Object.entries(ORDERS)) {
    const samples = { memtap: [] as number[], C: [] as number[] };
    for (let round = 0; round < (quick ? QUICK_ROUNDS : ROUNDS); round++) {
      // in turns: whatever else the machine does, both have it
      for (const { name, pid, ramPath } of round % 2 === 0 ? served : served.toReversed()) {
        const before = await cpuMs(pid);
        // it drops the file from the page cache before, and fails when a page is not right
        const words = [ramPath, SEED, 'dense', order, pages, `order=${round}`, 'drop'].map(String);
        await run(faultClient, words, { timeout: READ_TIMEOUT_MS, signal });
        samples[name].push((((await cpuMs(pid)) - before) * GIB_PAGES) / pages);
      }
    }
    const ratios = samples.memtap.map((ms, round) => ms / (samples.C[round] ?? Number.NaN));
    const of = (who: string, unit: 'ms' | 'ratio', values: readonly number[]): Figure =>
      figure({ name: 'loop-cpu-per-GiB', case: `${who}, ${orderName}`, unit, samples: values });
    figures.push(
      ...served.map(({ name }) => of(name, 'ms', samples[name])),
      of('memtap / C', 'ratio', ratios),
    );
  }
  return figures;
}

/** A memserver with a snapshot of `pages` pages, and the two that serve it further. */
async function serveBoth(
  owned: AsyncDisposableStack,
  { directory, pages }: { directory: string; pages: number },
): Promise<Served[]> {
  const at = (name: string): string => join(directory, name);
  const ramBytes = pages * PAGE_BYTES;
  const key = randomBytes(32);
  const memserver = await MemserverProcess.start({
    controlPath: at('memserver.control'),
    leasePath: at('memserver.lease'),
    listenAddress: '127.0.0.1',
    logPath: at('memserver.log'),
  });
  owned.defer(() => memserver.stop());
  await memserver.configure({ key });
  const words = [memserver.leasePath, String(pages), String(SEED), 'dense'];
  const source = start(owned, compile(join(HELPERS, 'frozen-source.c'), directory), words);
  const [pid, address = ''] = (await firstLine(source)).split(' ');
  const { presence } = await memserver.freeze({
    pid: Number(pid),
    ramRanges: [{ start: address, length: ramBytes }],
  });

  const memtap = await MemtapProcess.start({
    controlPath: at('memtap.control'),
    mountPath: at('memtap'),
    logPath: at('memtap.log'),
    ramBytes,
  });
  owned.defer(() => memtap.stop());
  await memtap.set({ minWindowPages: 0, maxWindowPages: 0 });
  await memtap.attach({ sources: [{ address: '127.0.0.1', port: memserver.port }], key, presence });

  const libraries = execFileSync('pkg-config', ['--cflags', '--libs', 'fuse3', 'libcrypto']).toString();
  const program = compile(join(CHECKOUT, 'bench/c/page-loop.c'), directory, libraries.trim().split(/\s+/));
  mkdirSync(at('mount'));
  const task = [at('mount'), String(memserver.port), key.toString('hex'), String(pages)];
  const inC = start(owned, program, task);
  await firstLine(inC);
  if (inC.pid === undefined) throw new Error('a program that said something has a pid');
  return [
    { name: 'memtap', pid: memtap.pid, ramPath: memtap.ramPath },
    { name: 'C', pid: inC.pid, ramPath: join(at('mount'), 'ram') },
  ];
}

/** Returns the program's path. */
function compile(source: string, directory: string, libraries: readonly string[] = []): string {
  const program = join(directory, source.replace(/^.*\/|\.c$/g, ''));
  execFileSync('gcc', ['-O2', '-Wall', '-Werror', '-o', program, source, ...libraries, '-pthread']);
  return program;
}

/** Ended with its owner: it unmounts, if it has a mount. */
function start(owned: AsyncDisposableStack, program: string, words: readonly string[]): ChildProcess {
  const child = spawn(program, words, { stdio: ['ignore', 'pipe', 'inherit'] });
  const ended = once(child, 'exit');
  owned.defer(async () => {
    child.kill('SIGTERM');
    await ended;
  });
  return child;
}

/** What a program says when it is ready. */
async function firstLine(child: ChildProcess): Promise<string> {
  if (child.stdout === null) throw new Error('stdout is a pipe');
  // also at its end, and then there is nothing to read
  await once(child.stdout, 'readable', { signal: AbortSignal.timeout(READY_TIMEOUT_MS) });
  const chunk = child.stdout.read() as Buffer | null;
  if (chunk === null) throw new Error(`${child.spawnfile} ended before it was ready`);
  return chunk.toString().trim();
}
