// The snowflock command.

import { runMain } from './failure.ts';
import { snowflockProgram } from './program.ts';

await runMain(snowflockProgram());
