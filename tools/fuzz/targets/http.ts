// The control API of sfmd as an operator or a host may abuse it: any method, path and body, one after the other on one system. No request
// may break an invariant of the state or be answered with an internal error.
//
// An input is "METHOD PATH CONTENT-TYPE ROLE\n" and the body; the role is host, or else operator; several requests are separated by \x1e.

import { mkdtempSync, rmSync } from 'node:fs';
import { TLSSocket } from 'node:tls';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { brokenInvariants } from '@snowflock/cluster';
import { parseSfmdConfig, type TlsIdentity } from '@snowflock/protocol';
import { createControlServer } from '../../../packages/daemon/src/http.ts';
import { silentLog } from '../../../packages/daemon/src/log.ts';
import { Certificates } from '../../../packages/daemon/src/sfmd/certificates.ts';
import type { Hosts } from '../../../packages/daemon/src/sfmd/hosts.ts';
import { MasterDaemon } from '../../../packages/daemon/src/sfmd/master-daemon.ts';
import { SfmdMetrics } from '../../../packages/daemon/src/sfmd/metrics.ts';
import { registerRoutes } from '../../../packages/daemon/src/sfmd/routes.ts';
import { Store } from '../../../packages/daemon/src/sfmd/store.ts';
import { seededRandom } from '../mutate.ts';
import type { Target } from '../engine.ts';

const REQUESTS_MAX = 4;
/** Requests that wait (joins, blocked tickets) are given up, as a caller that goes away does. */
const PATIENCE_MS = 5;
const TICKET = 'd4d660b0-054e-4017-8393-ad04ff1c1ff7';
/** What the daemon sees of a connection from host a: its certificate. */
function hostSocket(): TLSSocket {
  const certificate = {
    subject: { OU: 'host', CN: 'a' },
    subjectaltname: 'DNS:a',
    valid_to: 'Jan  1 00:00:00 2100 GMT',
    serialNumber: '01',
  };
  return Object.assign(Object.create(TLSSocket.prototype) as TLSSocket, {
    getPeerCertificate: () => certificate,
  });
}
const METHODS = ['GET', 'PUT', 'POST', 'DELETE', 'PATCH', 'OPTIONS', 'HEAD'] as const;

/** Hosts that do at once what they are told. */
const hosts: Hosts = {
  startMaster: async () => ({ diskBytes: 0 }),
  prepareSource: async () => undefined,
  prepareClones: async () => undefined,
  writeCheckpoint: async () => ({ pauseMs: 1 }),
  serveCheckpoint: async () => undefined,
  deleteCheckpoint: async () => undefined,
  tryMulticast: async () => ({ packetBytes: 0 }),
  clones: async () => [],
  sendVm: async () => ({ state: 'gone' }),
  resetVm: async () => undefined,
  destroy: async () => undefined,
  [Symbol.dispose]: () => undefined,
};

const directory = mkdtempSync(join(tmpdir(), 'snowflock-fuzz-'));
const store = Store.open(join(directory, 'state.db'));
const log = silentLog();
const daemon = new MasterDaemon({
  ...{ store, hosts, log, clusterid: 0, random: seededRandom(1) },
  ...{ nowMs: () => performance.now(), unixMs: () => Date.now() },
  capacities: [
    { host: 'a', cpus: 8, ramBytes: 2 ** 33 },
    { host: 'b', cpus: 8, ramBytes: 2 ** 33 },
  ],
});
const metrics = new SfmdMetrics(() => daemon.system);
// There is no authority: nothing is issued, and the identity is not used.
const config = parseSfmdConfig(
  `cluster_hosts = [{'host': 'a', 'cpus': 8, 'RAM': 8*(1<<30)}]\nauthority_dir = '${directory}/ca'\n`,
  'sfmd.cfg',
);
const tls = { ca: '', cert: '', key: '' } as unknown as TlsIdentity;
const certificates = await Certificates.open({ config, tls, log });
const server = await createControlServer({
  ...{ name: 'sfmd', log, metrics },
  register(app) {
    app.addHook('onRequest', (request, _reply, done) => {
      if (request.headers['x-role'] === 'host')
        Object.defineProperty(request.raw, 'socket', { value: hostSocket() });
      done();
    });
    registerRoutes(app, daemon, metrics, certificates);
  },
});

const shape = '{"diskImage":"micro","vcpus":1,"memoryMib":64}';
const report = '{"address":"10.0.0.1","sfldPort":1,"accel":"tcg"}';
const up = `PUT /v1/hosts/a application/json host\n${report}`;

export const target: Target = {
  name: 'http',
  seeds: [
    `${up}\x1ePOST /v1/clusters application/json\n${shape}`,
    'POST /v1/clusters/0/tickets application/json\n{"nclones":2,"procs":false,"min":0,"block":false}',
    'GET /v1/state application/json\n\x1eGET /metrics application/json\n\x1eGET /openapi.json application/json\n',
    ...['redeem', 'merge', 'join'].map(
      (verb) => `POST /v1/clusters/0/tickets/${TICKET}/${verb} application/json\n`,
    ),
    'POST /v1/clusters/0/vms/0/ended application/json host\n{"how":"lost","reason":"x"}',
    'DELETE /v1/clusters/0?force=1&by=guest application/json\n',
    'POST /v1/clusters/0/merge application/octet-stream\n\x00\x01',
  ],
  dictionary: [
    ...[
      'GET ',
      'PUT ',
      'POST ',
      'DELETE ',
      '/v1/clusters/',
      '/v1/hosts/',
      '/tickets',
      '/vms/',
      '/ended',
      '/merge',
      '\x1e',
    ],
    ...[
      '?force=1',
      '?by=guest',
      '%00',
      '%2e%2e',
      '"block":true',
      '"procs":true',
      '"min":-1',
      '"nclones":',
      '1e9',
      '-1',
      'null',
    ],
    ...['{"__proto__":{"x":1}}', '"constructor"', '[]', '99999999', 'application/octet-stream', TICKET],
  ],
  async run(input) {
    daemon.reportHost('a', { address: '10.0.0.1', sfldPort: 1, accel: 'tcg' });
    for (const text of input.toString('latin1').split('\x1e').slice(0, REQUESTS_MAX)) await ask(text);
    const broken = brokenInvariants(daemon.system);
    if (broken.length > 0) throw new Error(`the state is broken: ${broken.join('; ')}`);
  },
  async close() {
    daemon[Symbol.dispose]();
    await server.close({ deadlineMs: 100 });
    await certificates[Symbol.asyncDispose]();
    store[Symbol.dispose]();
    rmSync(directory, { recursive: true });
  },
};

async function ask(text: string): Promise<void> {
  const end = text.indexOf('\n');
  const [method = '', path = '', type = '', role = ''] = text.slice(0, Math.max(0, end)).split(' ');
  const known = METHODS.find((each) => each === method) ?? 'GET';
  const abort = new AbortController();
  const timer = setTimeout(() => abort.abort(), PATIENCE_MS);
  try {
    const reply = await server.app.inject({
      method: known,
      // Node's parser lets nothing else through to us.
      url: `/${path.replace(/[^\x21-\x7e]/g, '').replace(/^\/*/, '')}`,
      headers: { 'content-type': type.replace(/[^\x20-\x7e]/g, ''), 'x-role': role === 'host' ? 'host' : '' },
      payload: Buffer.from(text.slice(end + 1), 'latin1'),
      signal: abort.signal,
    });
    if (reply.statusCode >= 500 && reply.body.includes('"internal"'))
      throw new Error(`${text.slice(0, end)}: ${reply.body}`);
    if (reply.statusCode >= 400) JSON.parse(reply.body || '{}');
  } catch (error) {
    if (!(error instanceof Error) || error.name !== 'AbortError') throw error;
  } finally {
    clearTimeout(timer);
  }
}
