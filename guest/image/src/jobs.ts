// What runs programs of a VM with clones for as long as they run: the same for sfmpirun and sfdistcc.

import type { DiskSystem } from './disk-system.ts';

export const JOBS_PLACE = 'usr/lib/snowflock/jobs';

const MODULES = ['__init__', 'job', 'keeper', 'launch', 'launcher', 'processes', 'signals', 'wire'];

export const JOBS: NonNullable<DiskSystem['files']> = [
  ['jobs/sf-launch', `${JOBS_PLACE}/sf-launch`, 0o755],
  ...MODULES.map((name) => [`jobs/sfjobs/${name}.py`, `${JOBS_PLACE}/sfjobs/${name}.py`, 0o644] as const),
];
