// The composition root of sfmd: makes everything, wires it, and takes it apart again.
//
//   configuration ▶ certificates ▶ pid file ▶ state ▶ listeners ▶ {"ready":true} ... SIGTERM ▶ listeners close ▶ exit

import { join } from 'node:path';
import { readTlsIdentity, type SfmdConfig } from '@snowflock/protocol';
import { createSystem } from '@snowflock/cluster';
import { createControlServer } from '../http.ts';
import type { RunOptions } from '../daemon-program.ts';
import { claimPidFile } from '../pid-file.ts';
import { HostClients } from './hosts.ts';
import { MasterDaemon } from './master-daemon.ts';
import { registerRoutes } from './routes.ts';

/** Runs until the signal aborts; resolves when nothing of it is left. */
export async function runSfmd(config: SfmdConfig, { log, onReady, signal }: RunOptions): Promise<void> {
  const tls = readTlsIdentity(config);
  await using cleanup = new AsyncDisposableStack();
  cleanup.use(await claimPidFile({ name: 'sfmd', runDir: config.runDir }));
  const daemon = cleanup.use(
    new MasterDaemon({
      system: createSystem({ hosts: config.clusterHosts, clusterid: config.clusterid }),
      hosts: new HostClients(tls),
      log,
      random: Math.random,
      nowMs: () => performance.now(),
    }),
  );
  const server = cleanup.use(
    await createControlServer({ name: 'sfmd', log, register: (app) => registerRoutes(app, daemon) }),
  );
  await server.listenUnix(join(config.runDir, 'sfmd.sock'));
  const { port } = await server.listenTls({
    address: config.listenAddress,
    port: config.masterListenPort,
    tls,
  });
  log.info({ port, hosts: config.clusterHosts.length }, 'ready');
  onReady(port);
  await new Promise<void>((resolve) => {
    if (signal.aborted) resolve();
    signal.addEventListener('abort', () => resolve(), { once: true });
  });
  log.info({}, 'stopping');
  // First of all, so that callers who wait are told, and the listeners need not wait for them.
  daemon[Symbol.dispose]();
}
