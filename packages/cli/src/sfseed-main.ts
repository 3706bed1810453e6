// The sfseed command.

import { runMain } from './failure.ts';
import { sfseedProgram } from './seed.ts';

await runMain(sfseedProgram());
