// snowflock exec VM -- CMD...

import { constants } from 'node:os';
import { Command } from 'commander';
import { SnowflockError } from '@snowflock/protocol';
import { EXEC_WAIT_MS } from '@snowflock/sdk';
import { ExitStatus } from '../failure.ts';
import { openSystem, SOCKET_OPTION } from '../sfld-socket.ts';
import { parseSeconds } from './arguments.ts';

const { SIGINT, SIGTERM, SIGPIPE } = constants.signals;

export function execCommand(): Command {
  return new Command('exec')
    .summary('run a command in a VM')
    .description(
      "Runs CMD in a VM with this command's standard input, output and error, and ends with its exit status.\n" +
        'Ctrl-C is sent to the command; a second one detaches from it.',
    )
    .argument('<vm>', 'CLUSTERID:VMID, for example 0:1')
    .argument('<cmd...>', 'command and arguments, after --')
    .option(...SOCKET_OPTION)
    .option('--wait <seconds>', 'how long to wait for a VM that boots', parseSeconds, EXEC_WAIT_MS / 1000)
    .passThroughOptions()
    .addHelpText('after', '\nExample: snowflock exec 0:0 -- sh -c "nproc; free -m"')
    .action(async (vm: string, words: string[], options: { socket?: string; wait: number }) => {
      const argv = words[0] === '--' ? words.slice(1) : words;
      if (argv.length === 0) throw new SnowflockError('bad-request', 'no command given after --');
      await using system = openSystem(options);
      const guest = system.vm(vm);
      const detach = new AbortController();
      const { signal } = detach;
      const { stdin, stdout, stderr } = process;
      const exec = await guest.start({ argv, stdin, stdout, stderr, signal, waitMs: options.wait * 1000 });
      let interrupts = 0;
      const onInterrupt = (): void => {
        interrupts += 1;
        if (interrupts === 1) exec.kill(SIGINT);
        else detach.abort();
      };
      const onTerminate = (): void => exec.kill(SIGTERM);
      const onHangup = (): void => detach.abort();
      process.on('SIGINT', onInterrupt).on('SIGTERM', onTerminate).on('SIGHUP', onHangup);
      try {
        const status = await exec.exited;
        if (status !== 0) throw new ExitStatus(status & 0xff);
      } catch (error) {
        if (signal.aborted) {
          stderr.write(`snowflock: detached from VM ${guest.name}; the command was sent SIGHUP\n`);
          throw new ExitStatus(128 + SIGINT);
        }
        if ((error as NodeJS.ErrnoException).code === 'EPIPE') throw new ExitStatus(128 + SIGPIPE);
        throw error;
      } finally {
        process.off('SIGINT', onInterrupt).off('SIGTERM', onTerminate).off('SIGHUP', onHangup);
      }
    });
}
