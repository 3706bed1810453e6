// A branching sandbox: prepare a machine once, fork it, let each clone try another way, and keep the best.
//
//     tools/exec-node examples/sandbox/best-of.ts        on a host, or with a lab: snowflock lab up
//
// Here each clone packs the same file in its own way and the smallest one is kept. Think of builds, of fuzzing, of what an agent may try:
// whatever a clone does to its machine, the others and the prepared one do not see it.

import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { System, type Vm } from '@snowflock/sdk';

export interface Attempt {
  readonly vm: string;
  readonly way: string;
  readonly bytes: number;
}

/** Prepares whatever all attempts begin with. */
async function prepare(machine: Vm): Promise<void> {
  await run(machine, 'mkdir -p /work && seq 1 40000 > /work/data');
}

/** Ways to pack a column of numbers; the last one keeps their differences. */
export const WAYS = ['gzip', 'bzip2', 'lzop', "awk '{ print $1 - last; last = $1 }' | gzip"] as const;

/** One attempt in a clone of the prepared machine. */
async function attempt(machine: Vm, way: string): Promise<Attempt> {
  const bytes = await run(machine, `cat /work/data | ${way} > /work/packed && wc -c < /work/packed`);
  return { vm: machine.name, way, bytes: Number(bytes) };
}

/** The best of all attempts; its file is at `keep`. Nothing of the machines is left. */
export async function bestOf(system: System, ways: readonly string[], keep: string): Promise<Attempt> {
  await using machine = await system.seed({ diskImage: 'micro', vcpus: 1, memoryMib: 96 });
  await prepare(machine);
  const { clones } = await machine.fork(ways.length);
  const attempts = await Promise.all(
    clones.map(async ({ vm }, at) => {
      const clone = system.vm(vm);
      return { clone, result: await attempt(clone, ways[at] ?? 'cat') };
    }),
  );
  const [best] = attempts.sort((a, b) => a.result.bytes - b.result.bytes);
  if (!best) throw new Error('there was no attempt');
  await best.clone.copyOut('/work/packed', keep);
  return best.result;
}

async function run(machine: Vm, script: string): Promise<string> {
  const { status, stdout, stderr } = await machine.exec(['sh', '-c', script]);
  if (status !== 0) throw new Error(`${machine.name}: ${script}: status ${status}: ${stderr.toString()}`);
  return stdout.toString().trim();
}

if (import.meta.main) {
  await using system = System.connect();
  console.log(await bestOf(system, WAYS, join(tmpdir(), 'best')));
}
