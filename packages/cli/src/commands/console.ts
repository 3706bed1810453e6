// snowflock console VM: the VM's serial console on this terminal.

import { setTimeout as sleep } from 'node:timers/promises';
import { Command } from 'commander';
import { formatVmRef, parseVmRef, SnowflockError } from '@snowflock/protocol';
import { openClient, SOCKET_OPTION } from '../sfld-socket.ts';

const UPGRADE_TIMEOUT_MS = 35_000;
/** Ctrl-], as in telnet and virsh. */
const ESCAPE_BYTE = 0x1d;
/** Input from a file or pipe: leave when it is all sent and the console has been silent for so long. */
const QUIET_MS = 2000;

export interface ConsoleStreams {
  readonly input: NodeJS.ReadableStream & {
    readonly isTTY?: boolean;
    setRawMode?: (raw: boolean) => unknown;
  };
  readonly output: NodeJS.WritableStream;
}

/** Joins a console connection and a terminal until either ends; answers why. */
export async function joinConsole(
  connection: NodeJS.ReadWriteStream & { destroy: () => unknown },
  { input, output }: ConsoleStreams,
): Promise<'escape' | 'input-ended' | 'closed'> {
  const raw = input.isTTY === true;
  const { promise: ended, resolve } = Promise.withResolvers<'escape' | 'closed' | 'input-ended'>();
  let lastOutputAt = performance.now();
  const onInput = (chunk: Buffer | string): void => {
    const bytes = typeof chunk === 'string' ? Buffer.from(chunk) : chunk;
    const escape = raw ? bytes.indexOf(ESCAPE_BYTE) : -1;
    connection.write(escape < 0 ? bytes : bytes.subarray(0, escape));
    if (escape >= 0) resolve('escape');
  };
  const onEnd = async (): Promise<void> => {
    while (performance.now() - lastOutputAt < QUIET_MS)
      await sleep(QUIET_MS - (performance.now() - lastOutputAt) + 1);
    resolve('input-ended');
  };
  connection.on('data', (chunk: Buffer) => {
    lastOutputAt = performance.now();
    output.write(chunk);
  });
  connection.on('error', () => resolve('closed'));
  connection.on('close', () => resolve('closed'));
  connection.on('end', () => resolve('closed'));
  input.on('data', onInput);
  input.once('end', () => {
    lastOutputAt = performance.now();
    void onEnd();
  });
  if (raw) input.setRawMode?.(true);
  try {
    return await ended;
  } finally {
    if (raw) input.setRawMode?.(false);
    input.off('data', onInput);
    input.pause();
    connection.destroy();
  }
}

export function consoleCommand(): Command {
  return new Command('console')
    .summary("a VM's serial console")
    .description("Connects this terminal to a VM's serial console. Ctrl-] leaves.")
    .argument('<vm>', 'CLUSTERID:VMID, for example 0:0')
    .option(...SOCKET_OPTION)
    .action(async (vm: string, options: { socket?: string }) => {
      using client = openClient(options);
      const ref = formatVmRef(parseVmRef(vm));
      const path = `/v1/vms/${ref}/console`;
      const connection = await client.upgrade({
        path,
        protocol: 'snowflock-console',
        timeoutMs: UPGRADE_TIMEOUT_MS,
      });
      const { stdin, stdout, stderr } = process;
      if (stdin.isTTY) stderr.write(`connected to the console of VM ${ref}; Ctrl-] leaves\r\n`);
      const why = await joinConsole(connection, { input: stdin, output: stdout });
      if (why === 'escape') stderr.write('\r\n');
      stdin.destroy();
      if (why === 'closed')
        throw new SnowflockError(
          'vm-failed',
          `the console of VM ${ref} was closed: the VM is gone, or its sfld, or that of a host that it was on since; see sfstate`,
        );
    });
}
