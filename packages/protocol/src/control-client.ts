// The control API's client: one object per peer daemon, over its unix socket or over mutual TLS.
//
//   request: queued ─▶ connecting ─▶ sent ─▶ reply parsed ─▶ resolved
//               └──────────┴──────────┴── deadline │ abort │ refused │ reset ─▶ SnowflockError
//
// Invariants: every request has a deadline that covers all of it, and a shorter one for the connection alone; a reply is
// capped before it is buffered and parsed by a schema before anybody sees it; a request that may have reached the peer
// is sent again only if its method is idempotent.

import * as http from 'node:http';
import * as https from 'node:https';
import { isIP } from 'node:net';
import type { Duplex, Readable } from 'node:stream';
import * as tls from 'node:tls';
import { z } from 'zod';
import {
  describeTarget,
  fromReply,
  fromTransport,
  type ControlTarget,
  type TlsIdentity,
} from './control-client-errors.ts';
import { SnowflockError } from './errors.ts';

export type { ControlTarget, TlsIdentity } from './control-client-errors.ts';

/** A reply larger than this is an error: the state of 2,000 VMs is about 1 MB. */
export const CONTROL_REPLY_MAX_BYTES = 16 << 20;
/** A peer on a LAN answers SYN and TLS handshake in milliseconds; after this it counts as down. */
export const CONTROL_CONNECT_TIMEOUT_MS = 5000;
/** Connections to one peer; each blocking request and join holds one. */
const CONNECTIONS_MAX = 512;
/** TCP keep-alive probes begin after this, so that a long poll notices a peer whose power was cut. */
const PROBE_AFTER_MS = 10_000;
/** Node's timers overflow above this; a longer deadline is cut to it (24 days). */
const TIMER_MAX_MS = 0x7fffffff;

export interface ControlRequest<T> {
  readonly method: 'GET' | 'PUT' | 'POST' | 'DELETE';
  /** Begins with /v1/. */
  readonly path: string;
  /** A Buffer goes as application/octet-stream, a StreamBody as it is read, anything else as JSON; absent: no body. */
  readonly body?: unknown;
  /** What the reply must be; an empty body is parsed as undefined. For replies without a body: NoReply. */
  readonly reply: z.ZodType<T>;
  /** For all of it: waiting for a connection, sending, the peer's work, the reply. */
  readonly timeoutMs: number;
  readonly signal?: AbortSignal;
}

/** A body too large to be held; `open` is called for each attempt. */
export class StreamBody {
  readonly contentType: string;
  readonly sizeBytes: number;
  readonly open: () => Readable;

  constructor(of: { contentType: string; sizeBytes: number; open: () => Readable }) {
    this.contentType = of.contentType;
    this.sizeBytes = of.sizeBytes;
    this.open = of.open;
  }
}

/** Reply schema for requests that answer with nothing worth reading. */
export const NoReply: z.ZodType<undefined> = z.unknown().transform(() => undefined);

const IDEMPOTENT: ReadonlySet<string> = new Set(['GET', 'PUT', 'DELETE']);

interface Exchange {
  readonly method: string;
  readonly path: string;
  readonly headers: http.OutgoingHttpHeaders;
  readonly payload: Buffer | StreamBody | undefined;
  readonly timeoutMs: number;
  readonly signal: AbortSignal | undefined;
}

/** One peer. Owns its connections; dispose it with close() (or `using`). Upgraded sockets belong to whoever asked for them. */
export class ControlClient implements Disposable {
  readonly target: ControlTarget;
  readonly #agent: http.Agent;
  readonly #sockets = new Set<tls.TLSSocket>();
  #closed = false;

  constructor(target: ControlTarget) {
    this.target = target;
    const common = {
      keepAlive: true,
      keepAliveMsecs: PROBE_AFTER_MS,
      maxSockets: CONNECTIONS_MAX,
      maxFreeSockets: 4,
    };
    this.#agent =
      'socketPath' in target
        ? new http.Agent(common)
        : // A resumed session skips the look at the peer's name and at whether it is revoked: none is kept.
          new https.Agent({ ...common, ...tlsOptions(target), maxCachedSessions: 0 });
  }

  /** Sends one request and parses its reply. Throws SnowflockError: the peer's own, or 'host-down', 'timeout', 'interrupted', 'unauthorized'. */
  async request<T>(options: ControlRequest<T>): Promise<T> {
    const headers: http.OutgoingHttpHeaders = { accept: 'application/json' };
    let payload: Exchange['payload'];
    if (options.body instanceof StreamBody) {
      payload = options.body;
      headers['content-type'] = payload.contentType;
      headers['content-length'] = payload.sizeBytes;
    } else if (options.body !== undefined) {
      const binary = options.body instanceof Buffer;
      payload = binary ? (options.body as Buffer) : Buffer.from(JSON.stringify(options.body));
      headers['content-type'] = binary ? 'application/octet-stream' : 'application/json';
      headers['content-length'] = payload.length;
    } else if (options.method === 'POST' || options.method === 'PUT') headers['content-length'] = 0;
    const { method, path, timeoutMs, signal } = options;
    const { status, body } = await this.#exchange({ method, path, headers, payload, timeoutMs, signal });
    const what = `${method} ${path} at ${describeTarget(this.target)}`;
    if (status < 200 || status > 299) throw fromReply({ what, status, body });
    const parsed = options.reply.safeParse(body.length === 0 ? undefined : parseJson(body, what));
    if (parsed.success) return parsed.data;
    const issue = parsed.error.issues[0];
    const where = issue && issue.path.length > 0 ? issue.path.join('.') : 'body';
    throw new SnowflockError(
      'unavailable',
      `${what}: the reply is not what was expected (${where}: ${issue?.message ?? 'invalid'}); do both ends run the same SnowFlock release?`,
      { cause: parsed.error },
    );
  }

  /** Turns a connection into a raw byte stream of `protocol`. The caller owns the socket. */
  upgrade(options: {
    path: string;
    protocol: string;
    timeoutMs: number;
    signal?: AbortSignal;
  }): Promise<Duplex> {
    const headers = { connection: 'Upgrade', upgrade: options.protocol };
    const { path, timeoutMs, signal } = options;
    const what = `upgrade of ${path} to ${options.protocol} at ${describeTarget(this.target)}`;
    return new Promise<Duplex>((resolve, reject) => {
      const exchange: Exchange = { method: 'GET', path, headers, payload: undefined, timeoutMs, signal };
      const { request, fail, settle } = this.#start(exchange, reject);
      request.on('upgrade', (response, socket, head) => {
        if (!settle()) return void socket.destroy();
        if (response.headers.upgrade !== options.protocol) {
          socket.destroy();
          return reject(
            new SnowflockError(
              'unavailable',
              `${what}: the peer speaks '${response.headers.upgrade ?? ''}' instead`,
            ),
          );
        }
        socket.setTimeout(0);
        if (head.length > 0) socket.unshift(head);
        resolve(socket);
      });
      request.on('response', (response) => {
        collect(response, fail, (body) => {
          if (settle()) reject(fromReply({ what, status: response.statusCode ?? 0, body }));
        });
      });
      request.end();
    });
  }

  /** Cuts connections, upgraded ones too, whose peer's certificate has been revoked meanwhile. */
  dropRevoked(): void {
    for (const socket of this.#sockets) {
      // None while it connects (it is looked at then) and when it has just closed.
      const certificate = socket.getPeerCertificate() as tls.PeerCertificate | null;
      if (certificate && isRevoked(this.target, certificate.serialNumber)) socket.destroy();
    }
  }

  /** Another certificate and key for the connections that are made from now on; those with requests under way go on. */
  renewTls({ ca, cert, key }: TlsIdentity): void {
    if ('socketPath' in this.target) return;
    Object.assign((this.#agent as https.Agent).options, { ca, cert, key });
    for (const sockets of Object.values(this.#agent.freeSockets))
      for (const socket of sockets ?? []) socket.destroy();
  }

  /** A GET whose reply goes on until the caller destroys it. `timeoutMs` is for its beginning. */
  stream(options: {
    path: string;
    headers?: Readonly<Record<string, string>>;
    timeoutMs: number;
    signal?: AbortSignal;
  }): Promise<http.IncomingMessage> {
    const { path, headers = {}, timeoutMs, signal } = options;
    const what = `GET ${path} at ${describeTarget(this.target)}`;
    return new Promise((resolve, reject) => {
      const exchange = { method: 'GET', path, headers, payload: undefined, timeoutMs, signal };
      const { request, fail, settle } = this.#start(exchange, reject);
      request.on('response', (response) => {
        const status = response.statusCode ?? 0;
        if (status === 200) return settle() ? resolve(response) : void response.destroy();
        collect(response, fail, (body) => {
          if (settle()) reject(fromReply({ what, status, body }));
        });
      });
      request.end();
    });
  }

  close(): void {
    this.#closed = true;
    this.#agent.destroy();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  async #exchange(exchange: Exchange, attempt = 0): Promise<{ status: number; body: Buffer }> {
    const startedAt = performance.now();
    let reused = false;
    try {
      return await new Promise((resolve, reject) => {
        const { request, fail, settle } = this.#start(exchange, reject);
        request.on('socket', () => (reused = request.reusedSocket));
        request.on('response', (response) => {
          collect(response, fail, (body) => {
            if (settle()) resolve({ status: response.statusCode ?? 0, body });
          });
        });
        if (exchange.payload instanceof StreamBody) sendStream(exchange.payload, request, fail);
        else request.end(exchange.payload);
      });
    } catch (error) {
      // The peer closed an idle connection just as we reused it: the request was most likely never seen.
      const stale = reused && attempt === 0 && error instanceof SnowflockError && error.code === 'host-down';
      const timeoutMs = exchange.timeoutMs - (performance.now() - startedAt);
      if (!stale || this.#closed || timeoutMs <= 0 || !IDEMPOTENT.has(exchange.method)) throw error;
      return this.#exchange({ ...exchange, timeoutMs }, attempt + 1);
    }
  }

  /** Opens a request whose failures of any kind reach `reject` once, after which nothing of it is left. */
  #start(exchange: Exchange, reject: (error: SnowflockError) => void) {
    const { method, path, headers, signal, timeoutMs } = exchange;
    const what = `${method} ${path} at ${describeTarget(this.target)}`;
    if (this.#closed) throw new SnowflockError('unavailable', `${what}: this client is closed`);
    if (signal?.aborted)
      throw new SnowflockError('interrupted', `${what}: cancelled`, { cause: signal.reason });
    const where =
      'socketPath' in this.target
        ? { socketPath: this.target.socketPath, host: 'localhost' }
        : { host: this.target.address, port: this.target.port };
    const open = 'socketPath' in this.target ? http.request : https.request;
    const request = open({ ...where, method, path, headers, agent: this.#agent });
    let settled = false;
    let connectTimer: NodeJS.Timeout | undefined;
    const settle = (): boolean => {
      if (settled) return false;
      settled = true;
      clearTimeout(timer);
      clearTimeout(connectTimer);
      signal?.removeEventListener('abort', onAbort);
      return true;
    };
    const fail = (error: Error): void => {
      if (!settle()) return;
      request.destroy();
      reject(fromTransport(error, { what, method }));
    };
    const timer = setTimeout(
      () =>
        fail(
          new SnowflockError(
            'timeout',
            `${what}: no answer in ${timeoutMs} ms; see that daemon's log for what it waits for`,
          ),
        ),
      Math.min(Math.max(timeoutMs, 0), TIMER_MAX_MS),
    );
    const onAbort = (): void =>
      fail(new SnowflockError('interrupted', `${what}: cancelled`, { cause: signal?.reason }));
    signal?.addEventListener('abort', onAbort, { once: true });
    request.on('error', fail);
    request.on('socket', (socket) => {
      if (socket instanceof tls.TLSSocket && !this.#sockets.has(socket)) {
        this.#sockets.add(socket);
        socket.once('close', () => this.#sockets.delete(socket));
      }
      if (request.reusedSocket || !socket.connecting) return;
      connectTimer = setTimeout(
        () =>
          fail(
            new SnowflockError(
              'host-down',
              `${what}: no connection in ${CONTROL_CONNECT_TIMEOUT_MS} ms; is the host up and reachable?`,
            ),
          ),
        Math.min(CONTROL_CONNECT_TIMEOUT_MS, timeoutMs),
      );
      socket.once('socketPath' in this.target ? 'connect' : 'secureConnect', () =>
        clearTimeout(connectTimer),
      );
    });
    return { request, fail, settle };
  }
}

function tlsOptions(target: Extract<ControlTarget, { address: string }>): https.AgentOptions {
  const { host } = target;
  return {
    ...target.tls,
    minVersion: 'TLSv1.3',
    // An address cannot be a server name in TLS; the name is checked below in either case.
    ...(host !== undefined && isIP(host) === 0 ? { servername: host } : {}),
    checkServerIdentity: (_name, certificate) => {
      if (isRevoked(target, certificate.serialNumber))
        return Object.assign(new Error(`its certificate ${certificate.serialNumber} is revoked`), {
          code: 'CERT_REVOKED',
        });
      return host === undefined ? undefined : tls.checkServerIdentity(host, certificate);
    },
  };
}

/** What is read after the reply has come is dropped by the peer. */
function sendStream(body: StreamBody, request: http.ClientRequest, fail: (error: Error) => void): void {
  const source = body.open();
  source.on('error', (error) => {
    fail(error);
    request.destroy();
  });
  request.once('close', () => source.destroy());
  source.pipe(request);
}

function isRevoked(target: ControlTarget, serial: string): boolean {
  return 'tls' in target && 'isRevoked' in target.tls && target.tls.isRevoked?.(serial) === true;
}

/** Buffers a reply up to the cap. */
function collect(
  response: http.IncomingMessage,
  fail: (error: Error) => void,
  done: (body: Buffer) => void,
): void {
  const chunks: Buffer[] = [];
  let sizeBytes = 0;
  response.on('data', (chunk: Buffer) => {
    sizeBytes += chunk.length;
    if (sizeBytes > CONTROL_REPLY_MAX_BYTES)
      return fail(
        new SnowflockError('unavailable', `the reply is larger than ${CONTROL_REPLY_MAX_BYTES} bytes`),
      );
    chunks.push(chunk);
  });
  response.on('error', fail);
  response.on('aborted', () => fail(Object.assign(new Error('the reply broke off'), { code: 'ECONNRESET' })));
  response.on('end', () => done(Buffer.concat(chunks)));
}

function parseJson(body: Buffer, what: string): unknown {
  try {
    return JSON.parse(body.toString('utf8')) as unknown;
  } catch (error) {
    throw new SnowflockError(
      'unavailable',
      `${what}: the reply is not JSON; is something else listening there?`,
      {
        cause: error,
      },
    );
  }
}
