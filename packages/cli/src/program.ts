// The `snowflock` command: its subcommands.

import { Command } from 'commander';
import { consoleCommand } from './commands/console.ts';
import { cpCommand } from './commands/cp.ts';
import { doctorCommand } from './commands/doctor.ts';
import { execCommand } from './commands/exec.ts';
import { imageCommand } from './commands/image.ts';
import { labCommand } from './commands/lab.ts';
import { shutdownCommand } from './commands/shutdown.ts';

export function snowflockProgram(): Command {
  return new Command('snowflock')
    .description('SnowFlock: fork for virtual machines. See also sfseed, sfstate, sfld and sfmd.')
    .enablePositionalOptions()
    .addCommand(execCommand())
    .addCommand(cpCommand())
    .addCommand(consoleCommand())
    .addCommand(shutdownCommand())
    .addCommand(imageCommand())
    .addCommand(labCommand())
    .addCommand(doctorCommand());
}
