// The memserver: one process per snapshot, which owns the frozen image and serves its pages.
//
//   waiting --configure--> keyed --freeze--> serving --lease lost--> source lost
//   any state --stop, SIGTERM, orphaned--> exit (and with it the frozen process and qemu-nbd)
//
//   node main.ts --control UNIXSOCK --lease UNIXSOCK --listen ADDRESS [--port N] [--orphan-ms N] [--log-fields JSON]
//
// The fork's key arrives over the control socket, never in the argument vector. When everything listens, one line of
// JSON goes to stdout: {"ready":true,"port":N}.

import { parseArgs } from 'node:util';
import { z } from 'zod';
import { PAGE_BYTES, SnowflockError, toSnowflockError } from '@snowflock/protocol/pages';
import { collectYoungGarbage } from '../collect-garbage.ts';
import { ControlServer } from '../control/control-server.ts';
import { memserverRequestSchema } from '../control/schemas.ts';
import { watchOrphan } from '../orphan-watch.ts';
import { structureConsole } from '../process-log.ts';
import { rehearseFork } from '../rehearsal.ts';
import { MemserverControl } from './memserver-control.ts';
import { LeaseServer } from './lease.ts';
import { PageServer } from './page-server.ts';
import { Snapshot } from './snapshot.ts';

const DEFAULT_ORPHAN_MS = 600_000;

function readOptions(): { control: string; lease: string; listen: string; port: number; orphanMs: number } {
  const { values } = parseArgs({
    options: {
      control: { type: 'string' },
      lease: { type: 'string' },
      listen: { type: 'string' },
      port: { type: 'string', default: '0' },
      'orphan-ms': { type: 'string', default: String(DEFAULT_ORPHAN_MS) },
      'log-fields': { type: 'string' },
    },
  });
  structureConsole('memserver', values['log-fields']);
  const { control, lease, listen } = values;
  const port = Number(values.port);
  const orphanMs = Number(values['orphan-ms']);
  if (control === undefined || lease === undefined || listen === undefined)
    throw new SnowflockError('bad-config', 'memserver needs --control, --lease and --listen');
  if (!Number.isInteger(port) || port < 0 || port > 65535)
    throw new SnowflockError('bad-config', `--port ${values.port}`);
  if (!(orphanMs > 0)) throw new SnowflockError('bad-config', `--orphan-ms ${values['orphan-ms']}`);
  return { control, lease, listen, port, orphanMs };
}

async function main(): Promise<void> {
  const options = readOptions();
  // A handful of control messages in all: compiling parsers for them would cost more, at the moment of the fork.
  z.config({ jitless: true });
  const snapshot = new Snapshot();
  let stopping = false;
  const lose = (reason: string): void => {
    // the frozen process ends with its lease: when this process leaves, that is no loss
    if (stopping || snapshot.lostReason !== undefined) return;
    snapshot.markLost(reason);
    console.error(`memserver: source lost: ${reason}`);
    control.broadcast({ event: 'source-lost', reason });
  };
  const lease = new LeaseServer({
    path: options.lease,
    onLost: (pid) => {
      if (ops.frozenPid === pid) lose(`frozen process ${pid} ended`);
    },
  });
  const pages = new PageServer({ snapshot, onReadFailed: (error) => lose(error.message) });
  const stop = (): void => {
    if (stopping) return;
    stopping = true;
    lease.close();
    pages.close();
    void Promise.all([control.close(), snapshot.close()]).finally(() => {
      // exit() would wait for the threads that read, which may wait for a memtap that will never answer
      if (snapshot.readsUnderWay > 0) process.kill(process.pid, 'SIGKILL');
      process.exit(0);
    });
  };
  const ops = new MemserverControl({
    snapshot,
    lease,
    pages,
    stop,
    diskSocketPath: `${options.control}.nbd`,
  });
  const control = new ControlServer({ path: options.control, handler: (request) => ops.serve(request) });
  process.on('SIGTERM', stop);
  process.on('SIGINT', stop);
  // the supervisor that reads our stdout and stderr may be gone; that is no reason to die
  process.stdout.on('error', () => process.stdout.destroy());
  await lease.listen();
  const port = await pages.listen({ host: options.listen, port: options.port });
  await control.listen();
  watchOrphan({
    orphanMs: options.orphanMs,
    inUse: () => control.connectionCount > 0 || pages.clientCount > 0,
    onOrphan: () => {
      console.error(`memserver: nobody needed me for ${options.orphanMs} ms; leaving`);
      stop();
    },
  });
  rehearseFork({
    schema: memserverRequestSchema,
    like: {
      ...{ op: 'freeze', pid: process.pid, ramRanges: [{ start: '0', length: PAGE_BYTES }] },
      disk: { format: 'qcow2', path: '/', sizeBytes: PAGE_BYTES },
      upstream: { ramPath: '/', presencePath: '/' },
    },
  });
  collectYoungGarbage();
  process.stdout.write(`${JSON.stringify({ ready: true, port })}\n`);
}

main().catch((thrown: unknown) => {
  console.error(`memserver: ${toSnowflockError(thrown).message}`);
  process.exit(1);
});
