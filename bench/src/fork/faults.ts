// Page faults on a memtap, as a clone's QEMU takes them: a private mapping of the RAM file, random pages, one at a time.
// The memserver is on another lab host. `remote` faults are fetched, with the memtap's read-ahead off so that each is one;
// `local` are on pages that the host holds already.

import { execFile } from 'node:child_process';
import { mkdtemp, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import type { Lab } from '@snowflock/lab';
import { z } from 'zod';

const run = promisify(execFile);
const SCRIPT = join(import.meta.dirname, 'fault-host.ts');
const PROBES = join(import.meta.dirname, '../../../packages/replication/test');
const TIMEOUT_MS = 120_000;

const Latency = z.object({
  pages: z.number(),
  wrong: z.literal(0),
  minUs: z.number(),
  medianUs: z.number(),
  p99Us: z.number(),
  maxUs: z.number(),
});
export type FaultLatency = z.infer<typeof Latency>;
const Both = z.object({ remote: Latency, local: Latency });

export async function measureFaults(lab: Lab, pages: number): Promise<z.infer<typeof Both>> {
  const directory = await mkdtemp('/tmp/sf-faults-');
  try {
    for (const probe of ['fault-client', 'frozen-source'])
      await run('gcc', ['-O2', '-o', join(directory, probe), join(PROBES, `${probe}.c`)], {
        timeout: TIMEOUT_MS,
      });
    const [source, target] = lab.hosts;
    if (!source || !target) throw new Error('the fault bench needs a lab of two hosts');
    const side = (k: number, args: string[]) =>
      lab.exec(k, [process.execPath, SCRIPT, ...args], { timeoutMs: TIMEOUT_MS });
    const [serving, faulting] = await Promise.all([
      side(source.k, ['source', directory, source.address, String(pages)]),
      side(target.k, ['target', directory, String(pages)]),
    ]);
    if (serving.status !== 0 || faulting.status !== 0)
      throw new Error(`the fault bench failed: ${serving.stderr.toString()} ${faulting.stderr.toString()}`);
    return Both.parse(JSON.parse(faulting.stdout.toString().trim().split('\n').at(-1) ?? ''));
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
}
