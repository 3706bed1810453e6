// The snowflock-startup command.

import { runMain } from './failure.ts';
import { startupProgram } from './startup.ts';

await runMain(startupProgram());
