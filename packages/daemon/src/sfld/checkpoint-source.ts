// A checkpoint as the source of a new master VM: on the host that holds it a fork source whose memserver reads files in place
// of a frozen process, on the VM's host the descriptor that is got from there.

import { setTimeout as sleep } from 'node:timers/promises';
import {
  decodeDescriptor,
  encodeDescriptor,
  SourceDescriptor,
  toSnowflockError,
  type Descriptor,
  type StartMaster,
} from '@snowflock/protocol';
import { pageFilesOf, readDeviceState, type StoredCheckpoint } from './checkpoint-store.ts';
import type { HostContext } from './context.ts';
import type { ForkSource } from './fork-source.ts';

/** The host that holds it may hear of it later than this one, and then starts its memserver. */
const SOURCE_TIMEOUT_MS = 15_000;
const SOURCE_RETRY_MS = 20;

/** Answers the descriptor. Throws 'source-lost' when a file of the checkpoint is damaged. */
export async function serveCheckpoint(
  context: HostContext,
  source: ForkSource,
  stored: StoredCheckpoint,
): Promise<Buffer> {
  const { forkId, shape, ramBytes, diskBytes } = stored.manifest;
  const [memserver, deviceState] = await Promise.all([source.ready(), readDeviceState(stored)]);
  const { presence } = await memserver.openCheckpoint(pageFilesOf(stored));
  return encodeDescriptor({
    header: {
      clusterid: source.clusterid,
      ticket: source.ticket,
      ...{ nclones: 0, held: true, isolated: false },
      source: { address: context.address, port: memserver.port, keyHex: source.key.toString('hex') },
      prefetch: [...stored.wakeUpPages],
      ...{ forkId, shape, ramBytes, diskBytes },
    },
    presence,
    deviceState,
  });
}

/** From the host that holds the checkpoint, as soon as it serves it. */
export async function fetchDescriptor(
  { peers }: Pick<HostContext, 'peers'>,
  { ticket, source }: NonNullable<StartMaster['checkpoint']>,
): Promise<Descriptor> {
  const client = peers.client({ ...source, port: source.sfldPort });
  const signal = AbortSignal.any([AbortSignal.timeout(SOURCE_TIMEOUT_MS), peers.downSignal(source.host)]);
  for (;;) {
    try {
      const { descriptor } = await client.request({
        method: 'GET',
        path: `/v1/sources/${ticket}/descriptor`,
        reply: SourceDescriptor,
        timeoutMs: SOURCE_TIMEOUT_MS,
        signal,
      });
      return decodeDescriptor(Buffer.from(descriptor, 'base64'));
    } catch (error) {
      if (toSnowflockError(error).code !== 'no-such-ticket' || signal.aborted) throw error;
    }
    await sleep(SOURCE_RETRY_MS);
  }
}
