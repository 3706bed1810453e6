// The memtap: one process per snapshot and host, whose mount holds the clones' RAM (and disk) as files.
//
//   mounting --workers read--> ready (READs are held) --attach--> serving --> source lost
//   any state --stop, SIGTERM, orphaned, unmounted--> unmount, exit
//
//   node main.ts --control UNIXSOCK --mount DIR --ram-bytes N [--disk-bytes N] [--orphan-ms N] [--source-timeout-ms N]
//                [--uncompressed] [--log-fields JSON]
//
// Owns the mount, /dev/fuse and two workers. The kernel's page cache is the only store: what it drops is fetched again.
// When mounted and serving, one line of JSON goes to stdout: {"ready":true}.

import { mkdirSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { z } from 'zod';
import { PAGE_BYTES, PAGE_KEY_BYTES, SnowflockError, toSnowflockError } from '@snowflock/protocol/pages';
import { ControlServer } from '../control/control-server.ts';
import { memtapRequestSchema } from '../control/schemas.ts';
import { watchOrphan } from '../orphan-watch.ts';
import { structureConsole } from '../process-log.ts';
import { rehearseFork } from '../rehearsal.ts';
import { MemtapControl } from './memtap-control.ts';
import { MemtapMount } from './memtap-mount.ts';

const DEFAULT_ORPHAN_MS = 600_000;
const DEFAULT_SOURCE_TIMEOUT_MS = 10_000;
/** Files up to 2^44 bytes: page numbers are u32 on the wire. */
const MAX_FILE_BYTES = 2 ** 44;

interface Options {
  readonly control: string;
  readonly mount: string;
  readonly ramBytes: number;
  readonly diskBytes: number;
  readonly orphanMs: number;
  readonly sourceTimeoutMs: number;
  readonly compress: boolean;
}

function readOptions(): Options {
  const { values } = parseArgs({
    options: {
      control: { type: 'string' },
      mount: { type: 'string' },
      'ram-bytes': { type: 'string' },
      'disk-bytes': { type: 'string', default: '0' },
      'orphan-ms': { type: 'string', default: String(DEFAULT_ORPHAN_MS) },
      'source-timeout-ms': { type: 'string', default: String(DEFAULT_SOURCE_TIMEOUT_MS) },
      uncompressed: { type: 'boolean', default: false },
      'log-fields': { type: 'string' },
    },
  });
  structureConsole('memtap', values['log-fields']);
  const { control, mount } = values;
  if (control === undefined || mount === undefined)
    throw new SnowflockError('bad-config', 'memtap needs --control and --mount');
  const ramBytes = count('--ram-bytes', values['ram-bytes'], { min: PAGE_BYTES, max: MAX_FILE_BYTES });
  if (ramBytes % PAGE_BYTES !== 0)
    throw new SnowflockError('bad-config', `--ram-bytes ${ramBytes} is not in whole pages`);
  return {
    control,
    mount,
    ramBytes,
    diskBytes: count('--disk-bytes', values['disk-bytes'], { min: 0, max: MAX_FILE_BYTES }),
    orphanMs: count('--orphan-ms', values['orphan-ms'], { min: 1, max: Number.MAX_SAFE_INTEGER }),
    sourceTimeoutMs: count('--source-timeout-ms', values['source-timeout-ms'], { min: 1, max: 3_600_000 }),
    compress: !values.uncompressed,
  };
}

function count(name: string, text: string | undefined, range: { min: number; max: number }): number {
  const value = Number(text);
  if (text === undefined || !Number.isSafeInteger(value) || value < range.min || value > range.max)
    throw new SnowflockError(
      'bad-config',
      `memtap: ${name} ${text ?? 'missing'} is not a number from ${range.min} to ${range.max}`,
    );
  return value;
}

async function main(): Promise<void> {
  const options = readOptions();
  // A handful of control messages in all: compiling parsers for them would cost more, at the moment of the fork.
  z.config({ jitless: true });
  mkdirSync(options.mount, { recursive: true });
  let stopping = false;
  const stop = (exitCode: number): void => {
    if (stopping) return;
    stopping = true;
    void control
      .close()
      .then(() => mount.close())
      .finally(() => process.exit(exitCode));
  };
  process.stdout.on('error', () => process.stdout.destroy());
  const mount = await MemtapMount.open({
    ...options,
    onSourceLost: (reason) => {
      console.error(`memtap: source lost: ${reason}`);
      control.broadcast({ event: 'source-lost', reason });
    },
  });
  const ops = new MemtapControl({ mount, stop: () => stop(0) });
  const control = new ControlServer({ path: options.control, handler: (request) => ops.serve(request) });
  void mount.unmounted.then(() => {
    if (!stopping) console.error('memtap: somebody unmounted the file system; leaving');
    stop(1);
  });
  process.on('SIGTERM', () => stop(0));
  process.on('SIGINT', () => stop(0));
  try {
    await control.listen();
  } catch (error) {
    stopping = true;
    await mount.close();
    throw error;
  }
  watchOrphan({
    orphanMs: options.orphanMs,
    inUse: () => control.connectionCount > 0 || mount.openFiles > 0,
    onOrphan: () => {
      console.error(`memtap: nobody needed me for ${options.orphanMs} ms; leaving`);
      stop(0);
    },
  });
  rehearseFork({
    schema: memtapRequestSchema,
    like: {
      op: 'attach',
      sources: [{ address: '::', port: 1 }],
      keyHex: '00'.repeat(PAGE_KEY_BYTES),
      presence: '',
    },
  });
  process.stdout.write(`${JSON.stringify({ ready: true })}\n`);
}

/**
 * The end of a memtap that broke. Not by exit: that waits for the read worker, which waits for the kernel, which waits for answers
 * that nobody gives any more. Killed, it lets go of the mount, and its clones' reads fail at once.
 */
function crash(thrown: unknown): void {
  console.error('memtap: it broke, and ends:', thrown);
  process.kill(process.pid, 'SIGKILL');
}

process.on('uncaughtException', crash);
main().catch((thrown: unknown) => {
  console.error(`memtap: ${toSnowflockError(thrown).message}`);
  process.exit(1);
});
