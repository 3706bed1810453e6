// An exiting clone's result on its way to the host of the VM that forked it.
//
//   guest ──channel──▶ spool file ──▶ the parent's host: stored there ──▶ the exit is recorded, the VM destroyed
//
// The spool lies in the VM's state directory and goes with it. A parent's host whose sfld is being started again is waited for.

import { createReadStream, createWriteStream } from 'node:fs';
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import {
  NoReply,
  RESULT_TYPE,
  SnowflockError,
  StreamBody,
  toSnowflockError,
  type ControlClient,
  type ControlRequest,
  type PrepareClones,
  type VmRef,
} from '@snowflock/protocol';
import type { IncomingBytes } from './call-bytes.ts';
import { vmDirectories, type HostContext } from './context.ts';
import { tooLarge } from './result-store.ts';
import { ownersHost } from './ticket-places.ts';

/** Longer than a service manager takes to start sfld again. */
const PATIENCE_MS = 30_000;
const PAUSE_MS = 250;
const PUT_TIMEOUT_MS = 120_000;
const DROP_TIMEOUT_MS = 10_000;

export interface ResultOf {
  readonly ref: VmRef;
  readonly ticket: string;
  readonly parent: PrepareClones['parent'];
}

/** Resolves when the parent's host has it. Throws what the guest is told, whose VM runs on. */
export async function deliverResult(
  context: HostContext,
  of: ResultOf,
  result: { readonly status: number; readonly bytes: IncomingBytes; readonly signal: AbortSignal },
): Promise<void> {
  const { status, bytes, signal } = result;
  const { cloneBytes } = context.results.limits;
  if (bytes.sizeBytes > cloneBytes) throw tooLarge(bytes.sizeBytes, cloneBytes, context.host);
  const spool = join(vmDirectories(context, of.ref).state, 'result');
  try {
    await pipeline(bytes, createWriteStream(spool, { mode: 0o600 }), { signal });
    const stored = { status, sizeBytes: bytes.sizeBytes };
    await deliver(context, of, { ...stored, spool, signal });
  } catch (error) {
    throw isDiskError(error) ? noRoom(context.host, bytes.sizeBytes, error) : error;
  } finally {
    await rm(spool, { force: true });
  }
}

interface Spooled {
  readonly status: number;
  readonly sizeBytes: number;
  readonly spool: string;
  readonly signal: AbortSignal;
}

/** To where the VM that forked it runs by now. */
async function deliver(context: HostContext, of: ResultOf, result: Spooled): Promise<void> {
  try {
    await deliverTo(context, of, result);
  } catch (error) {
    if (toSnowflockError(error).code !== 'no-such-ticket') throw error;
    const parent = await ownersHost(context, of.ticket);
    if (!parent || parent.host === of.parent.host) throw error;
    await deliverTo(context, { ...of, parent }, result);
  }
}

async function deliverTo(context: HostContext, of: ResultOf, result: Spooled): Promise<void> {
  if (of.parent.host !== context.host) return put(context, of, result);
  const { ticket, ref } = of;
  await context.results.put(
    { ticket, vmid: ref.vmid },
    { ...result, source: createReadStream(result.spool) },
  );
}

/** The exit did not come about: its result must not count. As well as that can be said. */
export async function dropResult(context: HostContext, of: ResultOf): Promise<void> {
  const { ticket, parent, ref } = of;
  if (parent.host === context.host) return context.results.drop({ ticket, vmid: ref.vmid });
  await parentOf(context, parent).request({
    method: 'DELETE',
    path: pathOf(of),
    reply: NoReply,
    timeoutMs: DROP_TIMEOUT_MS,
  });
}

async function put(context: HostContext, of: ResultOf, result: Spooled): Promise<void> {
  const { status, sizeBytes, spool, signal } = result;
  const down = context.peers.downSignal(of.parent.host);
  const open = (): ReturnType<typeof createReadStream> => createReadStream(spool);
  const request: ControlRequest<undefined> = {
    method: 'PUT',
    path: `${pathOf(of)}?status=${status}&bytes=${sizeBytes}`,
    body: new StreamBody({ contentType: RESULT_TYPE, sizeBytes, open }),
    reply: NoReply,
    timeoutMs: PUT_TIMEOUT_MS,
    signal: AbortSignal.any([signal, down]),
  };
  const startedAtMs = performance.now();
  for (;;) {
    try {
      return await parentOf(context, of.parent).request(request);
    } catch (thrown) {
      const error = toSnowflockError(thrown);
      if (down.aborted)
        throw new SnowflockError('host-down', `host ${of.parent.host}, where the result belongs, is down`);
      // 'busy': it has not seen yet that the attempt before was cut short.
      const isAway = ['host-down', 'unavailable', 'busy'].includes(error.code);
      if (!isAway || performance.now() - startedAtMs > PATIENCE_MS) throw error;
    }
    await sleep(PAUSE_MS, undefined, { signal });
  }
}

function parentOf(context: HostContext, { host, address, sfldPort }: ResultOf['parent']): ControlClient {
  return context.peers.client({ host, address, port: sfldPort });
}

function pathOf({ ticket, ref }: ResultOf): string {
  return `/v1/tickets/${ticket}/results/${ref.vmid}`;
}

function isDiskError(error: unknown): error is NodeJS.ErrnoException {
  const code = (error as NodeJS.ErrnoException | null)?.code;
  return !(error instanceof SnowflockError) && (code === 'ENOSPC' || code === 'EDQUOT');
}

function noRoom(host: string, sizeBytes: number, error: NodeJS.ErrnoException): SnowflockError {
  return new SnowflockError(
    'no-resources',
    `host ${host} has no room for the ${sizeBytes} bytes that the clone exits with: ${error.message}; make room on its disk, or exit with less`,
    { cause: error },
  );
}
