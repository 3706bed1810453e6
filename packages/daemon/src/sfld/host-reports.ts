// This host's reports to sfmd: that it is there, and what runs on it.

import { randomUUID } from 'node:crypto';
import { HostReportReply, parseVmRef, toSnowflockError, type HostReport } from '@snowflock/protocol';
import type { HostContext } from './context.ts';
import type { HostDaemon } from './host-daemon.ts';
import type { RevokedFile } from './revoked-file.ts';

/** sfmd counts a host as down after missing several of these. */
const REPORT_INTERVAL_MS = 2_000;
const REPORT_TIMEOUT_MS = 5_000;

/** Before adoption and all else that takes time at a start: the host is not down, and what runs on it will be told. */
export async function reportAlive(context: HostContext, sfldPort: number): Promise<void> {
  const { address, accel } = context;
  try {
    await report(context, { address, sfldPort, accel });
  } catch (error) {
    context.log.debug({ err: error }, 'sfmd does not know yet that this host is back');
  }
}

function report(context: HostContext, body: HostReport, signal?: AbortSignal): Promise<HostReportReply> {
  return context.masterDaemon.request({
    method: 'PUT',
    path: `/v1/hosts/${encodeURIComponent(context.host)}`,
    body,
    reply: HostReportReply,
    timeoutMs: REPORT_TIMEOUT_MS,
    ...(signal ? { signal } : {}),
  });
}

/** Tells sfmd every few seconds that this host is there; sfmd may come and go. */
export async function reportLoop(
  context: HostContext,
  options: { revoked: RevokedFile; port: number; daemon: HostDaemon; signal: AbortSignal },
): Promise<void> {
  const { address, accel } = context;
  const { port: sfldPort, daemon } = options;
  const instance = randomUUID();
  let reachable: boolean | null = null;
  while (!options.signal.aborted) {
    try {
      await context.reports.flush();
      const { masters, clones } = daemon.state();
      const checkpoints = context.checkpoints.held;
      const routers = context.routers.report();
      const body = { address, sfldPort, accel, instance, vms: [...masters, ...clones], checkpoints, routers };
      const reply = await report(context, body, options.signal);
      if (reachable !== true) context.log.info('sfmd knows this host');
      reachable = true;
      context.metrics.masterReachable(true);
      context.peers.setHosts(reply.hosts);
      if (reply.revoked) await options.revoked.replace(reply.revoked);
      const addresses = reply.hosts.map((host) => host.address);
      await context.networks.setPeers(addresses);
      await followNetwork(context, reply, addresses);
    } catch (error) {
      if (reachable !== false && !options.signal.aborted)
        context.log.warn({ reason: toSnowflockError(error).message }, 'sfmd cannot be reached; trying on');
      reachable = false;
      context.metrics.masterReachable(false);
    }
    context.reportTurn.done();
    const pauseMs = reachable ? REPORT_INTERVAL_MS : REPORT_INTERVAL_MS / 4;
    await context.reportTurn.pause(pauseMs, options.signal);
  }
}

/** What may be reached outside, and which VMs need no ports any more. A router that does not take it is told again, or starts anew. */
async function followNetwork(
  { routers, log }: HostContext,
  { network, gone }: HostReportReply,
  hosts: readonly string[],
): Promise<void> {
  try {
    if (network) await routers.setPolicy(network, hosts);
    for (const vm of gone ?? []) await routers.hide(parseVmRef(vm));
  } catch (error) {
    log.warn({ err: error }, 'the routers of this host could not be told what may be reached; trying on');
  }
}
