// The sfstate command.

import { runMain } from './failure.ts';
import { sfstateProgram } from './state.ts';

await runMain(sfstateProgram());
