// The `snowflock` command: its subcommands.

import { Command } from 'commander';
import { certCommand, revokeCommand } from './commands/cert.ts';
import { checkpointCommand } from './commands/checkpoint.ts';
import { completionCommand } from './commands/completion.ts';
import { consoleCommand } from './commands/console.ts';
import { cpCommand } from './commands/cp.ts';
import { doctorCommand } from './commands/doctor.ts';
import { enrollCommand } from './commands/enroll.ts';
import { execCommand } from './commands/exec.ts';
import { exposeCommand } from './commands/expose.ts';
import { forkCommand } from './commands/fork.ts';
import { imageCommand } from './commands/image.ts';
import { initCommand } from './commands/init.ts';
import { labCommand } from './commands/lab.ts';
import { logsCommand } from './commands/logs.ts';
import { mergeCommand } from './commands/merge.ts';
import { migrateCommand } from './commands/migrate.ts';
import { resetCommand } from './commands/reset.ts';
import { shutdownCommand } from './commands/shutdown.ts';

export function snowflockProgram(): Command {
  return new Command('snowflock')
    .description('SnowFlock: fork for virtual machines. See also sfseed, sfstate, sfld and sfmd.')
    .enablePositionalOptions()
    .addCommand(execCommand())
    .addCommand(cpCommand())
    .addCommand(consoleCommand())
    .addCommand(forkCommand())
    .addCommand(mergeCommand())
    .addCommand(exposeCommand())
    .addCommand(shutdownCommand())
    .addCommand(checkpointCommand())
    .addCommand(resetCommand())
    .addCommand(migrateCommand())
    .addCommand(imageCommand())
    .addCommand(initCommand())
    .addCommand(enrollCommand())
    .addCommand(certCommand())
    .addCommand(revokeCommand())
    .addCommand(labCommand())
    .addCommand(doctorCommand())
    .addCommand(logsCommand())
    .addCommand(completionCommand(snowflockProgram));
}
