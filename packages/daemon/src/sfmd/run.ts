// The composition root of sfmd: makes everything, wires it, and takes it apart again.
//
//   configuration ▶ certificates ▶ state ▶ listeners ▶ pid file ▶ {"ready":true} ... SIGTERM ▶ listeners close ▶ exit

import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { readTlsIdentity, type SfmdConfig } from '@snowflock/protocol';
import { createSystem } from '@snowflock/cluster';
import { createControlServer } from '../http.ts';
import type { Log } from '../log.ts';
import { HostClients } from './hosts.ts';
import { MasterDaemon } from './master-daemon.ts';
import { pidFile, removePidFile, writePidFile } from './pid-file.ts';
import { registerRoutes } from './routes.ts';

export const SFMD_SOCKET = 'sfmd.sock';

export interface RunOptions {
  readonly log: Log;
  /** Called with the TCP port once all listeners are open. */
  readonly onReady: (port: number) => void;
  /** Aborts to stop. */
  readonly signal: AbortSignal;
}

/** Runs until the signal aborts; resolves when nothing of it is left. */
export async function runSfmd(config: SfmdConfig, { log, onReady, signal }: RunOptions): Promise<void> {
  const tls = readTlsIdentity(config);
  await mkdir(config.runDir, { recursive: true, mode: 0o700 });
  await using cleanup = new AsyncDisposableStack();
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
  await server.listenUnix(join(config.runDir, SFMD_SOCKET));
  const { port } = await server.listenTls({
    address: config.listenAddress,
    port: config.masterListenPort,
    tls,
  });
  const pids = pidFile(config.runDir);
  await writePidFile(pids);
  cleanup.defer(() => removePidFile(pids));
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
