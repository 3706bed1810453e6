// snowflock cp SRC DST: files and folders into and out of a VM.

import { Command } from 'commander';
import { formatVmRef, parseVmRef, SnowflockError } from '@snowflock/protocol';
import { interruptSignal } from '../failure.ts';
import { openSystem, SOCKET_OPTION } from '../sfld-socket.ts';

export type CopySide =
  { readonly vm: string; readonly path: string } | { readonly vm: null; readonly path: string };

/** `0:1:/etc/passwd` is in a VM, everything else is here; a file here whose name looks so is written ./0:1:name. */
export function parseCopySide(text: string): CopySide {
  const match = /^(\d+:\d+):(.*)$/s.exec(text);
  const path = match?.[2] ?? text;
  if (path === '') throw new SnowflockError('bad-request', `'${text}' names no path`);
  return match?.[1] === undefined ? { vm: null, path } : { vm: formatVmRef(parseVmRef(match[1])), path };
}

export function cpCommand(): Command {
  return new Command('cp')
    .summary('copy files into or out of a VM')
    .description(
      'Copies a file or a directory (with all that is in it) between this machine and a VM. One of SRC and DST is\n' +
        'VM:PATH. Into an existing directory it keeps its name. Modes are kept, owners are not.',
    )
    .argument('<src>', 'PATH or CLUSTERID:VMID:PATH')
    .argument('<dst>', 'PATH or CLUSTERID:VMID:PATH')
    .option(...SOCKET_OPTION)
    .addHelpText(
      'after',
      '\nExamples: snowflock cp data.fa 0:0:/tmp     snowflock cp 0:3:/var/log ./log-of-3',
    )
    .action(async (src: string, dst: string, options: { socket?: string }) => {
      const from = parseCopySide(src);
      const to = parseCopySide(dst);
      if ((from.vm === null) === (to.vm === null))
        throw new SnowflockError(
          'bad-request',
          'one of SRC and DST must be in a VM (CLUSTERID:VMID:PATH), and the other here',
        );
      await using system = openSystem(options);
      const signal = interruptSignal();
      if (to.vm !== null) await system.vm(to.vm).copyIn(from.path, to.path, { signal });
      else if (from.vm !== null) await system.vm(from.vm).copyOut(from.path, to.path, { signal });
    });
}
