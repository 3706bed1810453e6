// A VM of this host goes to another one, which has prepared for it (clone-group.ts has that side).
//
//   results of its clones ──▶ there      hold, freeze ──descriptor──▶ there: device state, commit, cont      end here
//                                             └── it is not sure that it runs there: ask, until it is ──┘
//
// Invariant: it runs on one host. The other one commits in its journal before the VM's first instruction there; what has committed goes
// on there, whoever is killed; what has not is given up there before it goes on here. When neither can be learnt the VM is lost.

import { setTimeout as sleep } from 'node:timers/promises';
import {
  encodeDescriptor,
  formatVmRef,
  HostState,
  NoReply,
  RESULT_TYPE,
  SettleReply,
  SnowflockError,
  StreamBody,
  toSnowflockError,
  type ControlClient,
  type SendVm,
  type VmRef,
} from '@snowflock/protocol';
import { logAbout } from '../log.ts';
import { relayClients } from './client-relay.ts';
import type { CloneVm } from './clone-vm.ts';
import type { HostContext } from './context.ts';
import type { ForkSource } from './fork-source.ts';
import { launchClones } from './launch.ts';
import type { MasterVm } from './master-vm.ts';
import type { FrozenToMove, MoveOutcome } from './vm-forks.ts';

/** For calls of the guest that could not be made again there. */
const QUIET_TIMEOUT_MS = 5_000;
/** The VM is paused so long at most before it counts as lost; longer than a service manager takes to start sfld again. */
const SETTLE_TIMEOUT_MS = 30_000;
const SETTLE_RETRY_MS = 250;
const STATE_TIMEOUT_MS = 10_000;
const RESULT_TIMEOUT_MS = 120_000;
/** Frames that wait for the guest go along with the descriptor. */
const QUEUED_MAX_BYTES = 256 * 1024;

export interface Moved {
  readonly outcome: MoveOutcome;
  /** From the command to stop until the other host had said that it runs. */
  readonly pausedMs: number;
  /** Why it stays. */
  readonly reason: string;
}

export interface MoveOf {
  readonly vm: MasterVm | CloneVm;
  readonly source: ForkSource;
  readonly to: SendVm['to'];
  readonly isolated: boolean;
}

/** Resolves to where it runs now. Throws when it has not even been paused. */
export async function moveVm(context: HostContext, move: MoveOf): Promise<Moved> {
  const { vm, source, to } = move;
  const held = await vm.port.agentAnswers();
  await source.ready();
  await assertPrepared(context, move);
  await using sealed = new AsyncDisposableStack();
  for (const { ticket } of context.results.boxesOf(vm.ref)) {
    await context.results.seal(ticket);
    sealed.defer(() => context.results.unseal(ticket));
  }
  await sendResults(context, move);
  await vm.port.quiet(QUIET_TIMEOUT_MS);
  sealed.defer(() => vm.console.release());
  await vm.console.hold();
  const { ticket } = source;
  let pausedMs = 0;
  let reason = `host ${to.host} did not start it`;
  const outcome = await vm.forks.move({ ticket, to, held, source }, async (frozen) => {
    const launched = await handOver(context, move, { ...frozen, held });
    pausedMs = performance.now() - frozen.stoppedAtMs;
    if (launched.ok) return 'moved';
    reason = launched.reason;
    return settleMove(context, { ...vm.ref, ticket, to });
  });
  if (outcome === 'moved') {
    relayClients(context, { vm, to, held });
    for (const box of context.results.boxesOf(vm.ref)) await context.results.remove(box.ticket);
  }
  return { outcome, pausedMs, reason };
}

/** Also opens the connection that the descriptor will take. */
async function assertPrepared(context: HostContext, { source: { ticket }, to }: MoveOf): Promise<void> {
  const { groups } = await clientOf(context, to).request({
    method: 'GET',
    path: '/v1/state',
    reply: HostState,
    timeoutMs: STATE_TIMEOUT_MS,
  });
  if (groups.includes(ticket)) return;
  throw new SnowflockError('unavailable', `host ${to.host} has not prepared for it; try again`);
}

async function handOver(
  context: HostContext,
  { vm, source, to, isolated }: MoveOf,
  frozen: FrozenToMove & { readonly held: boolean },
): Promise<{ readonly ok: boolean; readonly reason: string }> {
  const { clusterid, vmid } = vm.ref;
  const { ticket } = source;
  try {
    const { diskBytes, shape, wakeUpPages } = vm.forks;
    const { ram, forkId, held } = frozen;
    const { port, presence } = await frozen.served;
    const channel = held ? vm.port.handOver() : undefined;
    if ((channel?.queued.length ?? 0) > QUEUED_MAX_BYTES)
      throw new SnowflockError('busy', `too much waits to be read by the guest; try again`);
    const consoleToken = vm.console.handOver();
    const descriptor = encodeDescriptor({
      header: {
        ...{ clusterid, ticket, forkId, nclones: 0, held, isolated, shape },
        source: { address: context.address, port, keyHex: source.key.toString('hex') },
        ...{ ramBytes: ram.length, diskBytes, prefetch: wakeUpPages },
        ...(channel && { channel }),
        ...(consoleToken !== undefined && { consoleToken }),
      },
      presence,
      deviceState: frozen.deviceState,
    });
    const clones = [{ vmid, vcpus: shape.vcpus, ...to }];
    const log = logAbout(context.log, { clusterid, vmid, ticket });
    const [launched] = await launchClones({ peers: context.peers, log }, { ticket, clones, descriptor });
    return { ok: launched?.ok === true, reason: launched?.reason ?? 'it was not started' };
  } catch (thrown) {
    return { ok: false, reason: toSnowflockError(thrown).message };
  }
}

/** Until the other host has said whether it runs there; if it does not, it never will. */
export async function settleMove(
  context: HostContext,
  { ticket, to, clusterid, vmid }: VmRef & { readonly ticket: string; readonly to: SendVm['to'] },
): Promise<MoveOutcome> {
  const end = performance.now() + SETTLE_TIMEOUT_MS;
  const log = logAbout(context.log, { clusterid, vmid, ticket });
  for (;;) {
    try {
      const { running } = await clientOf(context, to).request({
        method: 'POST',
        path: `/v1/tickets/${ticket}/settle`,
        reply: SettleReply,
        timeoutMs: SETTLE_TIMEOUT_MS,
      });
      return running ? 'moved' : 'stayed';
    } catch (thrown) {
      const { message } = toSnowflockError(thrown);
      log.warn({ host: to.host, reason: message }, 'whether it runs on the other host is not known yet');
      if (performance.now() > end) return 'unknown';
    }
    await sleep(SETTLE_RETRY_MS);
  }
}

/** What its clones have returned so far; what they return meanwhile they bring again (result-store.ts: seal). */
async function sendResults(context: HostContext, { vm, source, to }: MoveOf): Promise<void> {
  const client = clientOf(context, to);
  const move = `move=${source.ticket}`;
  for (const box of context.results.boxesOf(vm.ref)) {
    const base = `/v1/tickets/${box.ticket}`;
    const limits = { reply: NoReply, timeoutMs: RESULT_TIMEOUT_MS } as const;
    await client.request({ method: 'PUT', path: `${base}/box?${move}`, body: box, ...limits });
    await using reader = context.results.read(box.ticket, vm.ref);
    for (const [vmid, { status, sizeBytes }] of reader?.results ?? []) {
      const file = await reader?.open(vmid);
      if (!file) continue;
      const body = new StreamBody({
        contentType: RESULT_TYPE,
        sizeBytes,
        open: () => file.createReadStream({ start: 0, autoClose: true }),
      });
      const path = `${base}/results/${vmid}?status=${status}&bytes=${sizeBytes}&${move}`;
      await client.request({ method: 'PUT', path, body, ...limits });
    }
  }
}

function clientOf({ peers }: HostContext, { host, address, sfldPort: port }: SendVm['to']): ControlClient {
  return peers.client({ host, address, port });
}

/** For whoever asked, and for sfmd. */
export function lostOnTheWay(ref: VmRef, { host }: SendVm['to']): string {
  return `VM ${formatVmRef(ref)} was on its way to host ${host}, which does not answer: whether it runs there is not known`;
}
