// The composition root of sfmd: makes everything, wires it, and takes it apart again.
//
//   configuration ▶ certificates ▶ pid file ▶ stored state ▶ listeners ▶ {"ready":true} ... SIGTERM ▶ listeners close ▶ exit

import { join } from 'node:path';
import { readTlsIdentity, type SfmdConfig } from '@snowflock/protocol';
import { createControlServer } from '../http.ts';
import type { RunOptions } from '../daemon-program.ts';
import { groupId } from '../group.ts';
import { CertificateKeeper } from '../certificate-keeper.ts';
import { claimPidFile } from '../pid-file.ts';
import { Certificates } from './certificates.ts';
import { HostClients } from './hosts.ts';
import { MasterDaemon } from './master-daemon.ts';
import { SfmdMetrics } from './metrics.ts';
import { registerRoutes } from './routes.ts';
import { Store } from './store.ts';

/** Runs until the signal aborts; resolves when nothing of it is left. */
export async function runSfmd(config: SfmdConfig, { log, onReady, signal }: RunOptions): Promise<void> {
  const files = readTlsIdentity(config);
  const gid = await groupId(config.socketGroup);
  await using cleanup = new AsyncDisposableStack();
  cleanup.use(await claimPidFile({ name: 'sfmd', runDir: config.runDir }));
  const store = cleanup.use(Store.open(join(config.stateDir, 'state.db')));
  const certificates = cleanup.use(await Certificates.open({ config, tls: files, log }));
  const tls = { ...files, isRevoked: certificates.revoked.has };
  const hosts = new HostClients(tls);
  certificates.revoked.onChange(() => hosts.dropRevoked());
  const daemon = cleanup.use(
    new MasterDaemon({
      store,
      capacities: config.clusterHosts,
      clusterid: config.clusterid,
      limits: config.limits,
      network: {
        whitelist: [...config.networkWhitelist],
        capMbit: config.bandwidthCap,
        nameservers: [...config.networkNameservers],
      },
      hosts,
      pageWays: {
        mode: config.networkMode,
        multicastHosts: new Map(config.clusterHosts.map(({ host, multicastHost }) => [host, multicastHost])),
      },
      detach: config.detachClones,
      push: config.pushPages,
      compress: config.compressPages,
      log,
      random: Math.random,
      nowMs: () => performance.now(),
      unixMs: () => Date.now(),
    }),
  );
  const metrics = new SfmdMetrics(
    () => daemon.system,
    () => daemon.pageWays.heard,
  );
  const server = cleanup.use(
    await createControlServer({
      name: 'sfmd',
      log,
      metrics,
      limits: config.httpLimits,
      revoked: certificates.revoked,
      register: (app) => registerRoutes(app, daemon, metrics, certificates),
    }),
  );
  await server.listenUnix(join(config.runDir, 'sfmd.sock'), { gid });
  const { port } = await server.listenTls({
    address: config.listenAddress,
    port: config.masterListenPort,
    tls,
  });
  const keeper = new CertificateKeeper({
    paths: config,
    identity: files,
    renew: () => certificates.renewOwn(config),
    onExpiry: (atMs) => metrics.certificateExpires(atMs),
    onChange: (identity) => {
      for (const each of [server, hosts, certificates]) each.renewTls(identity);
    },
    log,
  });
  const keeping = keeper.run(signal);
  log.info({ port, hosts: config.clusterHosts.length }, 'ready');
  onReady(port);
  await new Promise<void>((resolve) => {
    if (signal.aborted) resolve();
    signal.addEventListener('abort', () => resolve(), { once: true });
  });
  log.info({}, 'stopping');
  // First of all, so that callers who wait are told, and the listeners need not wait for them.
  daemon[Symbol.dispose]();
  await keeping;
}
