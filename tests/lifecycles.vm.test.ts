// One table of lifecycles, one list of invariants: after each lifecycle, each of them holds.
//
// A lifecycle is gone through once; what has become of it is asked for each invariant. The last one ends it.

import { afterAll, beforeAll, describe, it } from 'vitest';
import { compileForGuest } from './support/guest-programs.ts';
import { diskIsRight, identitiesAreRight, resourcesAreCounted } from './support/lifecycle-invariants.ts';
import { Lifecycle, MASTER, type Step } from './support/lifecycle.ts';
import { requireVm } from './require-vm.ts';
import { sharedLab } from './support/test-lab.ts';

const RUN = requireVm();

const forkFirst = { do: 'fork', vm: MASTER, into: ['first'] } as const;
const forkTwo = { do: 'fork', vm: MASTER, into: ['left', 'right'] } as const;

const LIFECYCLES: readonly { readonly name: string; readonly steps: readonly Step[] }[] = [
  { name: 'a fork', steps: [forkTwo] },
  { name: 'a fork of a fork', steps: [forkFirst, { do: 'fork', vm: 'first', into: ['below', 'beside'] }] },
  { name: 'a second fork while older clones run', steps: [forkFirst, forkTwo] },
  {
    name: 'a VM from a checkpoint, and its fork',
    steps: [
      { do: 'checkpoint', vm: MASTER, as: 'kept' },
      { do: 'clone checkpoint', from: 'kept', into: 'again' },
      { do: 'fork', vm: 'again', into: ['of again'] },
    ],
  },
  {
    name: 'migration of a clone that then forks',
    steps: [forkTwo, { do: 'migrate', vm: 'left' }, { do: 'fork', vm: 'left', into: ['of left'] }],
  },
  {
    name: 'migration of a master VM that forks on',
    steps: [forkFirst, { do: 'migrate', vm: MASTER }, { do: 'fork', vm: MASTER, into: ['second'] }],
  },
  { name: 'a reset', steps: [forkTwo, { do: 'reset', vm: 'left' }] },
  { name: 'the crash of a clone', steps: [forkTwo, { do: 'crash', vm: 'left' }] },
  { name: 'a join', steps: [forkFirst, forkTwo, { do: 'join', clones: ['left', 'right'] }] },
  { name: 'a kill', steps: [forkFirst, forkTwo, { do: 'kill', clones: ['left', 'right'] }] },
  { name: 'a merge', steps: [forkFirst, forkTwo, { do: 'merge', clones: ['first'] }] },
];

const INVARIANTS: readonly {
  readonly name: string;
  readonly check: (lifecycle: Lifecycle) => Promise<void>;
}[] = [
  { name: 'memory is right', check: (lifecycle) => lifecycle.expectContents('memory') },
  { name: 'disk is right', check: diskIsRight },
  { name: 'identity is right', check: identitiesAreRight },
  { name: 'resources are counted', check: resourcesAreCounted },
  { name: 'nothing is left when it is over', check: ({ lab }) => lab.reset() },
];

describe.skipIf(!RUN)('after', () => {
  const lab = sharedLab({ hosts: 2, cpus: 6, ramMib: 2048 }, { keepsVms: true });
  let vmtest: Buffer;
  beforeAll(async () => {
    vmtest = await compileForGuest('vmtest');
  });

  describe.each(LIFECYCLES)('$name:', ({ steps }) => {
    let lifecycle: Lifecycle;
    beforeAll(async () => {
      lifecycle = await Lifecycle.run(lab(), vmtest, steps);
    });
    // not of the next one, whatever became of this one
    afterAll(() => lab().reset());

    it.each(INVARIANTS)('$name', ({ check }) => check(lifecycle));
  });
});
