// snowflock completion bash|zsh|fish: a script that completes every host command, made of the commands' definitions.

import { Argument, Command } from 'commander';
import { bashCompletion } from '../completion/bash.ts';
import { fishCompletion } from '../completion/fish.ts';
import { daemonNodes, nodesOf } from '../completion/shape.ts';
import { zshCompletion } from '../completion/zsh.ts';
import { sfseedProgram } from '../seed.ts';
import { startupProgram } from '../startup.ts';
import { sfstateProgram } from '../state.ts';

const SHELLS = { bash: bashCompletion, zsh: zshCompletion, fish: fishCompletion } as const;

/** `snowflock`: the command that this is a part of. */
export function completionCommand(snowflock: () => Command): Command {
  return new Command('completion')
    .summary('completion of all commands for a shell')
    .description(
      'Prints what a shell needs to complete snowflock, sfseed, sfstate, snowflock-startup, sfld and sfmd.',
    )
    .addArgument(new Argument('<shell>', 'which shell').choices(Object.keys(SHELLS)))
    .action((shell: keyof typeof SHELLS) => {
      const programs = [snowflock(), sfseedProgram(), sfstateProgram(), startupProgram()];
      const nodes = [...programs.flatMap((program) => nodesOf(program)), ...daemonNodes()];
      process.stdout.write(SHELLS[shell](nodes));
    });
}
