// The composition root of sfld: makes everything, wires it, and takes it apart again.
//
//   pid file ▶ accelerator ▶ networks, peers ▶ adoption ▶ sweep ▶ listeners ▶ reports to sfmd ▶ {"ready":true}
//   ... SIGTERM ▶ listeners close ▶ VMs are let go of and run on ▶ exit

import { existsSync } from 'node:fs';
import { chmod, mkdir } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { renew } from '@snowflock/authority';
import {
  readTlsIdentity,
  resolveHostAddress,
  SnowflockError,
  type SfldConfig,
  type TlsIdentity,
} from '@snowflock/protocol';
import { chooseAccel, type Accel } from '@snowflock/vm';
import { createControlServer } from '../http.ts';
import type { RunOptions } from '../daemon-program.ts';
import type { Log } from '../log.ts';
import { groupId } from '../group.ts';
import { CertificateKeeper } from '../certificate-keeper.ts';
import { claimPidFile } from '../pid-file.ts';
import { CheckpointStore } from './checkpoint-store.ts';
import { ClusterNetworks } from './cluster-networks.ts';
import type { HostContext } from './context.ts';
import { HostDaemon } from './host-daemon.ts';
import { reportAlive, reportLoop } from './host-reports.ts';
import { Journal } from './journal.ts';
import { SfldMetrics } from './metrics.ts';
import { Peers } from './peers.ts';
import { ReportTurn } from './report-turn.ts';
import { Reports } from './reports.ts';
import { ResultStore } from './result-store.ts';
import { RevokedFile } from './revoked-file.ts';
import { Routers } from './routers.ts';
import { registerLocalRoutes, registerRoutes, registerUpgrades } from './routes.ts';
import { OWNER_VARIABLE, sweepLeftovers } from './sweep.ts';

function forkShimPath(): string {
  const root = join(dirname(fileURLToPath(import.meta.url)), '../../../..');
  const path = process.env['SNOWFLOCK_FORKSHIM'] ?? join(root, 'build/native/forkshim.so');
  if (!existsSync(path))
    throw new SnowflockError('unavailable', `${path} is missing; build it: npm run setup`);
  return path;
}

async function measuredAccel(config: SfldConfig, log: Log): Promise<Accel> {
  const { chosen, kvm } = await chooseAccel(config.accel);
  log.info({ accel: chosen, why: kvm.why }, 'accelerator chosen');
  return chosen;
}

/** Until the signal aborts. */
function keepCertificate(options: {
  readonly config: SfldConfig;
  readonly identity: TlsIdentity;
  readonly log: Log;
  readonly signal: AbortSignal;
  readonly metrics: SfldMetrics;
  readonly users: readonly { renewTls: (tls: TlsIdentity) => void }[];
}): Promise<void> {
  const { config, identity, users, log } = options;
  const files = { ca: config.tlsCa, cert: config.tlsCert, key: config.tlsKey };
  const master = { address: config.masterHost, port: config.masterPort };
  const keeper = new CertificateKeeper({
    paths: config,
    identity,
    renew: (stop) => renew({ master, files, signal: stop }),
    onExpiry: (atMs) => options.metrics.certificateExpires(atMs),
    onChange: (found) => users.forEach((user) => user.renewTls(found)),
    log,
  });
  return keeper.run(options.signal);
}

/** Runs until the signal aborts; resolves when nothing of it is left. */
export async function runSfld(config: SfldConfig, { log, signal, onReady }: RunOptions): Promise<void> {
  await using cleanup = new AsyncDisposableStack();
  for (const directory of [config.runDir, config.stateDir]) await mkdir(directory, { recursive: true });
  await chmod(config.runDir, 0o700);
  const revoked = new RevokedFile(join(config.stateDir, 'revoked.json'));
  const files = readTlsIdentity(config);
  const tls = { ...files, isRevoked: revoked.certificates.has };
  const gid = await groupId(config.socketGroup);
  const address = config.address ?? (await resolveHostAddress(config.hostname));
  const forkShim = forkShimPath();
  // First: what another sfld owns that runs is neither to be adopted nor to be swept.
  cleanup.use(await claimPidFile({ name: 'sfld', runDir: config.runDir }));
  process.env[OWNER_VARIABLE] = config.runDir;
  const journal = new Journal({ stateDir: config.stateDir, log });
  // Measuring takes a second: not while VMs wait to be taken over, for which it was measured.
  const known = journal.entries.length > 0 ? journal.accel : null;
  const accel = known ?? (await measuredAccel(config, log));
  journal.accel = accel;

  const peers = cleanup.use(new Peers(tls));
  revoked.certificates.onChange(() => peers.dropRevoked());
  const masterDaemon = peers.client({
    host: config.masterHost,
    address: config.masterHost,
    port: config.masterPort,
  });
  const masterAddress = await resolveHostAddress(config.masterHost).catch(() => null); // no host then, or named by sfmd
  const alsoHosts = masterAddress === null ? [address] : [address, masterAddress];
  const routers = new Routers({ runDir: config.runDir, journal, log, alsoHosts });
  const networks = new ClusterNetworks({ localAddress: address, log, routers });
  const reports = new Reports({ masterDaemon, log });
  const { hostname: host, stateDir, resultLimits: limits } = config;
  const results = new ResultStore({ host, stateDir, limits, log });
  const context: HostContext = {
    host: config.hostname,
    address,
    runDir: config.runDir,
    stateDir: config.stateDir,
    accel,
    forkShim,
    masterDaemon,
    peers,
    networks,
    routers,
    journal,
    checkpoints: await CheckpointStore.open({ stateDir: config.stateDir, log }),
    reports,
    reportTurn: new ReportTurn(),
    results,
    log,
    metrics: new SfldMetrics(),
  };
  const daemon = cleanup.use(new HostDaemon(context));
  if (known && config.localListenPort !== 0) void reportAlive(context, config.localListenPort);
  const kept = await daemon.adopt();
  await routers.keepOnly((clusterid) => daemon.vm({ clusterid, vmid: 0 }) !== undefined);
  await results.sweep((vm) => daemon.vm(vm) !== undefined);
  await sweepLeftovers({ runDir: config.runDir, stateDir: config.stateDir, kept, log });
  const remote = cleanup.use(
    await createControlServer({
      name: 'sfld',
      log,
      metrics: context.metrics,
      limits: config.httpLimits,
      revoked: revoked.certificates,
      register: (app) => registerRoutes(app, daemon),
    }),
  );
  const local = cleanup.use(
    await createControlServer({
      name: 'sfld',
      log,
      metrics: context.metrics,
      limits: config.httpLimits,
      revoked: revoked.certificates,
      register: (app) => {
        registerRoutes(app, daemon);
        registerLocalRoutes(app, daemon);
      },
    }),
  );
  registerUpgrades(remote, daemon);
  registerUpgrades(local, daemon);
  const { port } = await remote.listenTls({ address, port: config.localListenPort, tls });
  await local.listenUnix(join(config.runDir, 'sfld.sock'), { gid });

  const keeping = keepCertificate({
    ...{ config, identity: files, log, signal, metrics: context.metrics },
    users: [remote, peers],
  });
  const reporting = reportLoop(context, { revoked, port, daemon, signal });
  log.info({ port }, 'ready');
  onReady(port);
  await Promise.all([reporting, keeping]);
  log.info('stopping: the VMs of this host run on');
}
