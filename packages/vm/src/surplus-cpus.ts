// A clone of a processor ticket may have fewer processors than its master VM, whose device state it loads. Its guest takes the
// surplus ones offline. One that puts them online again gets what the host has to spare.

import { setPriority } from 'node:os';
import { z } from 'zod';
import type { Qmp } from './qmp.ts';

/** The lowest priority: 1.5 % of a processor's time where another wants it. */
const NICE_SURPLUS = 19;

const CpuInfo = z.array(z.object({ 'cpu-index': z.int(), 'thread-id': z.int().min(1) }));

/** Of all processors but the first `vcpus`. */
export async function yieldSurplusCpus(qmp: Qmp, vcpus: number): Promise<void> {
  const cpus = CpuInfo.parse(await qmp.execute({ execute: 'query-cpus-fast' }));
  for (const cpu of cpus) if (cpu['cpu-index'] >= vcpus) setPriority(cpu['thread-id'], NICE_SURPLUS);
}
