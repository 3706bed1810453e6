// The composition root of sfld: makes everything, wires it, and takes it apart again.
//
//   pid file ▶ sweep ▶ accelerator ▶ networks, peers ▶ listeners ▶ reports to sfmd ▶ {"ready":true} ... SIGTERM ▶ VMs end ▶ exit

import { randomUUID } from 'node:crypto';
import { existsSync } from 'node:fs';
import { chmod, mkdir } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import {
  HostReportReply,
  type HostReport,
  readTlsIdentity,
  resolveHostAddress,
  SnowflockError,
  toSnowflockError,
  type SfldConfig,
} from '@snowflock/protocol';
import { chooseAccel, type Accel } from '@snowflock/vm';
import { createControlServer } from '../http.ts';
import type { RunOptions } from '../daemon-program.ts';
import { claimPidFile } from '../pid-file.ts';
import { ClusterNetworks } from './cluster-networks.ts';
import type { HostContext } from './context.ts';
import { HostDaemon } from './host-daemon.ts';
import { Peers } from './peers.ts';
import { registerLocalRoutes, registerRoutes, registerUpgrades } from './routes.ts';
import { OWNER_VARIABLE, sweepLeftovers } from './sweep.ts';

/** sfmd counts a host as down after missing several of these. */
const REPORT_INTERVAL_MS = 2_000;
const REPORT_TIMEOUT_MS = 5_000;

function forkShimPath(): string {
  const root = join(dirname(fileURLToPath(import.meta.url)), '../../../..');
  const path = process.env['SNOWFLOCK_FORKSHIM'] ?? join(root, 'build/native/forkshim.so');
  if (!existsSync(path))
    throw new SnowflockError('unavailable', `${path} is missing; build it: npm run setup`);
  return path;
}

/** Runs until the signal aborts; resolves when nothing of it is left. */
export async function runSfld(config: SfldConfig, { log, signal, onReady }: RunOptions): Promise<void> {
  await using cleanup = new AsyncDisposableStack();
  for (const directory of [config.runDir, config.stateDir]) await mkdir(directory, { recursive: true });
  await chmod(config.runDir, 0o700);
  const tls = readTlsIdentity(config);
  const address = config.address ?? (await resolveHostAddress(config.hostname));
  const forkShim = forkShimPath();
  // Before the sweep: it would take the VMs of another sfld that runs for leftovers.
  cleanup.use(await claimPidFile({ name: 'sfld', runDir: config.runDir }));
  await sweepLeftovers({ runDir: config.runDir, stateDir: config.stateDir, log });
  process.env[OWNER_VARIABLE] = config.runDir;
  const accel = await chooseAccel(config.accel);
  log.info({ accel: accel.chosen, why: accel.kvm.why }, 'accelerator chosen');

  const peers = cleanup.use(new Peers(tls));
  const masterDaemon = peers.client({
    host: config.masterHost,
    address: config.masterHost,
    port: config.masterPort,
  });
  const networks = new ClusterNetworks({ localAddress: address, log });
  const context: HostContext = {
    host: config.hostname,
    address,
    runDir: config.runDir,
    stateDir: config.stateDir,
    accel: accel.chosen,
    forkShim,
    masterDaemon,
    peers,
    networks,
    log,
  };
  const daemon = cleanup.use(new HostDaemon(context));
  const remote = cleanup.use(
    await createControlServer({ name: 'sfld', log, register: (app) => registerRoutes(app, daemon) }),
  );
  const local = cleanup.use(
    await createControlServer({
      name: 'sfld',
      log,
      register: (app) => {
        registerRoutes(app, daemon);
        registerLocalRoutes(app, daemon);
      },
    }),
  );
  registerUpgrades(remote, daemon);
  registerUpgrades(local, daemon);
  const { port } = await remote.listenTls({ address, port: config.localListenPort, tls });
  await local.listenUnix(join(config.runDir, 'sfld.sock'));

  const reporting = reportLoop(context, { port, accel: accel.chosen, signal });
  log.info({ port }, 'ready');
  onReady(port);
  await reporting;
  log.info('stopping: the VMs of this host end');
}

/** Tells sfmd every few seconds that this host is there; sfmd may come and go. */
async function reportLoop(
  context: HostContext,
  options: { port: number; accel: Accel; signal: AbortSignal },
): Promise<void> {
  const { host, address } = context;
  const { port: sfldPort, accel } = options;
  const report: HostReport = { address, sfldPort, accel, instance: randomUUID() };
  let reachable: boolean | null = null;
  while (!options.signal.aborted) {
    try {
      const reply = await context.masterDaemon.request({
        method: 'PUT',
        path: `/v1/hosts/${encodeURIComponent(host)}`,
        body: report,
        reply: HostReportReply,
        timeoutMs: REPORT_TIMEOUT_MS,
        signal: options.signal,
      });
      if (reachable !== true) context.log.info('sfmd knows this host');
      reachable = true;
      context.peers.setHosts(reply.hosts);
      await context.networks.setPeers(reply.hosts.map((host) => host.address));
    } catch (error) {
      if (reachable !== false && !options.signal.aborted)
        context.log.warn({ reason: toSnowflockError(error).message }, 'sfmd cannot be reached; trying on');
      reachable = false;
    }
    const pauseMs = reachable ? REPORT_INTERVAL_MS : REPORT_INTERVAL_MS / 4;
    await sleep(pauseMs, undefined, { signal: options.signal }).catch(() => undefined); // told to stop
  }
}
