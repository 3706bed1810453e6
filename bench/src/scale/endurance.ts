// npm run bench -- endurance: forks and merges of one master VM, a thousand in a row: does anything grow? The pause, the memory
// and open files of the daemons and of the master VM's QEMU, and the processes of the hosts, at the begin and at the end.

import { readdirSync, readFileSync } from 'node:fs';
import { Lab } from '@snowflock/lab';
import { chooseAccel } from '@snowflock/vm';
import { figure, machine, type BenchResult, type Figure } from '../figures.ts';
import { BenchMaster } from '../fork/master.ts';

const FORKS = 1000;
const QUICK_FORKS = 60;
/** Of all forks: what counts as the begin, and as the end. */
const SHARE = 0.1;
/** Until caches have filled: not yet the begin. */
const WARM_UP = 20;
const MEMORY_MIB = 96;
const LAB_RAM_BYTES = 2 * 2 ** 30;

interface Usage {
  readonly name: string;
  readonly rssBytes: number;
  readonly files: number;
}

export async function benchEndurance(options: { quick: boolean; signal: AbortSignal }): Promise<BenchResult> {
  const { quick, signal } = options;
  const forks = quick ? QUICK_FORKS : FORKS;
  await using lab = await Lab.up({ name: 'bench', hosts: 2, cpus: 4, ramBytes: LAB_RAM_BYTES, signal });
  await using master = await BenchMaster.seed(lab, { image: 'micro', memoryMib: MEMORY_MIB });
  const pauses: number[] = [];
  let before: Usage[] = [];
  for (let round = 0; round < WARM_UP + forks; round++) {
    signal.throwIfAborted();
    if (round === WARM_UP) before = await usages(lab);
    const { ticket, record } = await master.fork(1);
    if (round >= WARM_UP) pauses.push(record.pauseMs);
    await master.merge(ticket);
  }
  const after = await usages(lab);
  const count = Math.round(forks * SHARE);
  return {
    bench: 'endurance',
    machine: machine((await chooseAccel('auto')).chosen),
    figures: [...pauseFigures(pauses, count), ...usageFigures(before, after, forks)],
  };
}

function pauseFigures(pauses: readonly number[], count: number): Figure[] {
  const of = (name: string, samples: readonly number[]): Figure =>
    figure({ name: 'parent-pause', case: name, unit: 'ms', samples });
  const first = of(`first ${count}`, pauses.slice(0, count));
  const last = of(`last ${count}`, pauses.slice(-count));
  const ratio = last.median / first.median;
  return [first, last, figure({ name: 'last/first', case: 'parent-pause', unit: 'ratio', samples: [ratio] })];
}

function usageFigures(before: readonly Usage[], after: readonly Usage[], forks: number): Figure[] {
  const figures: Figure[] = [];
  for (const now of after) {
    const then = before.find(({ name }) => name === now.name);
    if (!then) continue;
    const grown = (name: string, unit: Figure['unit'], value: number): Figure =>
      figure({ name, case: `${now.name}, ${forks} forks`, unit, samples: [value] });
    figures.push(
      grown('memory-growth', 'bytes', now.rssBytes - then.rssBytes),
      grown('files-growth', 'count', now.files - then.files),
    );
  }
  const grown = after.length - before.length;
  return [
    ...figures,
    figure({ name: 'processes-growth', case: `${forks} forks`, unit: 'count', samples: [grown] }),
  ];
}

/** Of every process of the lab's hosts. The master VM runs on one of them. */
async function usages(lab: Lab): Promise<Usage[]> {
  const found: Usage[] = [];
  for (const { k, name } of lab.hosts) {
    const { stdout } = await lab.exec(k, ['sh', '-c', `ip netns pids ${lab.hosts[k - 1]?.netns ?? ''}`]);
    for (const pid of stdout.split('\n').filter(Boolean)) {
      const usage = usageOf(pid);
      if (usage) found.push({ ...usage, name: `${usage.name} of ${name}` });
    }
  }
  return found;
}

function usageOf(pid: string): Usage | undefined {
  try {
    const words = readFileSync(`/proc/${pid}/cmdline`, 'utf8').split('\0');
    const daemon = words.map((word) => /(sfmd|sfld)\/main\.ts$/.exec(word)?.[1]).find(Boolean);
    const name = daemon ?? words[0]?.split('/').at(-1) ?? '';
    if (!daemon && !name.startsWith('qemu-system')) return undefined;
    const kib = Number(/^VmRSS:\s+(\d+) kB/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1] ?? 0);
    return { name, rssBytes: kib * 1024, files: readdirSync(`/proc/${pid}/fd`).length };
  } catch {
    return undefined; // it has just ended
  }
}
