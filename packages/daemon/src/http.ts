// A control server: one set of routes on several authenticated listeners.
//
//   created ──ready()──▶ listening on a unix socket (mode 0600) and/or TCP with mutual TLS ──close()──▶ closed
//
// Invariants: there is no listener without authentication, and no route without roles; upgrades exist only on these
// listeners; after close() no socket of any listener is open, whatever its peer does.

import Fastify, { type FastifyError, type FastifyInstance, type FastifyRequest } from 'fastify';
import { once } from 'node:events';
import * as fs from 'node:fs/promises';
import * as http from 'node:http';
import * as https from 'node:https';
import * as net from 'node:net';
import { dirname } from 'node:path';
import type { Duplex } from 'node:stream';
import * as tls from 'node:tls';
import { z } from 'zod';
import {
  HTTP_LIMITS_DEFAULT,
  isErrorCode,
  RESULT_TYPE,
  SnowflockError,
  toSnowflockError,
  type ErrorCode,
  type HttpLimits,
  type Role,
  type TlsIdentity,
} from '@snowflock/protocol';
import { assertRole, peerOf } from './peer.ts';
import { Gate } from './gate.ts';
import * as limits from './http-limits.ts';
import { badInput } from './http-routes.ts';
import { RevokedCertificates } from './revoked-certificates.ts';
import { answerError, UpgradeRouter, type UpgradeHandler, type UpgradeRoute } from './http-upgrade.ts';
import { subjectOfPath, type Log, type LogSubject } from './log.ts';
import type { DaemonMetrics } from './metrics.ts';

/** How long close() lets running requests finish unless told otherwise. */
const CLOSE_DEADLINE_MS = 2000;
/** A connection whose last request ends after close() began is idle again: look for those this often. */
const DRAIN_POLL_MS = 20;
/** Connecting to a socket file tells at once whether somebody listens on it. */
const STALE_PROBE_MS = 1000;

declare module 'fastify' {
  interface FastifyContextConfig {
    roles?: readonly Role[];
  }
}

export interface ControlServer extends AsyncDisposable {
  readonly app: FastifyInstance;
  /** Aborts when close() begins: for handlers that wait. */
  readonly closing: AbortSignal;
  onUpgrade(route: UpgradeRoute, handler: UpgradeHandler): void;
  /**
   * Mode 0600 in a directory with 0700, or with a group 0660 and 0710; a dead server's socket file is replaced, a live
   * one's is an error.
   */
  listenUnix(path: string, options?: { gid: number | null }): Promise<void>;
  /** TCP with mutual TLS: callers without a certificate of the CA are refused in the handshake. Port 0: any. */
  listenTls(options: { address: string; port: number; tls: TlsIdentity }): Promise<{ port: number }>;
  /** Another certificate for the connections that are made from now on. */
  renewTls(tls: TlsIdentity): void;
  close(options?: { deadlineMs?: number }): Promise<void>;
}

export interface ControlServerOptions {
  /** Of the daemon, for messages. */
  readonly name: string;
  readonly log: Log;
  /** Absent, for tests: nothing is counted. */
  readonly metrics?: DaemonMetrics;
  readonly limits?: HttpLimits;
  /** Absent: none is. */
  readonly revoked?: RevokedCertificates;
  readonly register: (app: FastifyInstance) => void;
}

/** Builds the routes. Add upgrades, then listen. The caller owns it and must close() it. */
export async function createControlServer({
  name,
  log,
  metrics,
  limits: limitsOf = HTTP_LIMITS_DEFAULT,
  revoked = new RevokedCertificates(),
  register,
}: ControlServerOptions): Promise<ControlServer> {
  let handler: http.RequestListener | undefined;
  // Fastify serves exactly one server; ours never listens, and hands its request handler to all the real listeners.
  const app = Fastify({
    logger: false,
    bodyLimit: limits.JSON_BODY_MAX_BYTES,
    serverFactory: (listener) => {
      handler = listener;
      return http.createServer();
    },
  });
  app.addContentTypeParser('application/octet-stream', { parseAs: 'buffer' }, (_request, body, done) =>
    done(null, body),
  );
  app.addContentTypeParser(RESULT_TYPE, (_request, payload, done) => done(null, payload));
  setErrorHandlers(app, { name, log, metrics });
  requireRoles(app);
  if (metrics) countAnswers(app, metrics);
  register(app);
  await app.ready();
  if (handler === undefined) throw new Error('fastify did not build its request handler');
  const gate = new Gate({ limits: limitsOf, revoked, log });
  return new Listeners({ app, handler, name, log, metrics, gate, limits: limitsOf });
}

/** Before anything of a request's body is read. */
function requireRoles(app: FastifyInstance): void {
  app.addHook('onRoute', ({ config, method, url }) => {
    if (!config?.roles) throw new Error(`${String(method)} ${url}: the route does not say who may ask it`);
  });
  app.addHook('onRequest', (request, _reply, done) => {
    const peer = peerOf(request.raw.socket);
    const { roles } = request.routeOptions.config;
    if (roles) assertRole(peer, roles, `${request.method} ${request.routeOptions.url ?? request.url}`);
    done();
  });
}

/** Both listeners of a daemon share its metrics. */
function countAnswers(app: FastifyInstance, metrics: DaemonMetrics): void {
  app.addHook('onResponse', (request, reply, done) => {
    const { method, routeOptions } = request;
    metrics.answered({
      method,
      route: routeOptions.url,
      status: reply.statusCode,
      seconds: reply.elapsedTime / 1000,
    });
    done();
  });
}

function setErrorHandlers(
  app: FastifyInstance,
  { name, log, metrics }: { name: string; log: Log; metrics: DaemonMetrics | undefined },
): void {
  app.setErrorHandler((thrown: FastifyError, request, reply) => {
    const { error, status } = classify(thrown);
    metrics?.failed(error.code, 'http');
    const { method, url } = request;
    const fields = { ...requestSubject(request), method, url, status, code: error.code };
    if (error.code === 'internal') log.error({ ...fields, err: thrown }, 'request failed');
    else log.info({ ...fields, reason: error.message }, 'request refused');
    return reply.code(status).send({ error: { code: error.code, message: error.message } });
  });
  app.setNotFoundHandler((request, reply) => {
    const message = `${name} has no ${request.method} ${request.url}; do both ends run the same SnowFlock release?`;
    return reply.code(404).send({ error: { code: 'bad-request', message } });
  });
  app.addHook('onResponse', (request, reply, done) => {
    log.debug(
      {
        ...requestSubject(request),
        ...{ method: request.method, url: request.url, status: reply.statusCode, ms: reply.elapsedTime },
      },
      'answered',
    );
    done();
  });
}

function requestSubject(request: FastifyRequest): LogSubject {
  return subjectOfPath((request.params ?? {}) as Record<string, string>);
}

function classify(thrown: FastifyError | SnowflockError | z.ZodError): {
  error: SnowflockError;
  status: number;
} {
  if (thrown instanceof SnowflockError) return { error: thrown, status: thrown.httpStatus };
  if (thrown instanceof z.ZodError) return { error: badInput(thrown, 'body'), status: 400 };
  // Fastify's own: malformed JSON, a body over the limit, a content type nobody parses.
  const status = thrown.statusCode ?? 500;
  if (status === 413)
    return {
      error: new SnowflockError('too-large', `${thrown.message}; docs/security.md has the limits`),
      status,
    };
  if (status >= 400 && status < 500 && !isErrorCode(thrown.code))
    return { error: new SnowflockError('bad-request', thrown.message, { cause: thrown }), status };
  return { error: new SnowflockError('internal', thrown.message, { cause: thrown }), status: 500 };
}

class Listeners implements ControlServer {
  readonly app: FastifyInstance;
  readonly #handler: http.RequestListener;
  readonly #name: string;
  readonly #servers: http.Server[] = [];
  readonly #sockets = new Set<net.Socket>();
  readonly #gate: Gate;
  readonly #limits: HttpLimits;
  readonly #upgrades: UpgradeRouter;
  readonly #closing = new AbortController();
  #closed: Promise<void> | undefined;

  constructor(parts: {
    app: FastifyInstance;
    handler: http.RequestListener;
    name: string;
    log: Log;
    metrics: DaemonMetrics | undefined;
    gate: Gate;
    limits: HttpLimits;
  }) {
    const { gate } = parts;
    this.app = parts.app;
    this.#gate = gate;
    this.#limits = parts.limits;
    this.#handler = (request, response) => {
      try {
        gate.admit(request, response);
      } catch (thrown) {
        return refuse(response, toSnowflockError(thrown));
      }
      parts.handler(request, response);
    };
    this.#name = parts.name;
    const onError = (code: ErrorCode): void => parts.metrics?.failed(code, 'http');
    this.#upgrades = new UpgradeRouter({ log: parts.log, gate, onError });
  }

  get closing(): AbortSignal {
    return this.#closing.signal;
  }

  onUpgrade(route: UpgradeRoute, handler: UpgradeHandler): void {
    this.#upgrades.add(route, handler);
  }

  async listenUnix(path: string, { gid = null }: { gid?: number | null } = {}): Promise<void> {
    const dir = dirname(path);
    await fs.mkdir(dir, { recursive: true, mode: 0o700 });
    await removeStaleSocket(path, this.#name);
    const server = this.#adopt(http.createServer(SERVER_OPTIONS, this.#handler));
    // The socket file appears within listen(): the mask makes it 0600 from its first moment.
    const mask = process.umask(0o177);
    try {
      server.listen({ path });
    } finally {
      process.umask(mask);
    }
    await listening(server, path);
    this.#servers.push(server);
    if (gid === null) return fs.chmod(path, 0o600);
    await fs.chown(path, -1, gid);
    await fs.chmod(path, 0o660);
    await fs.chown(dir, -1, gid);
    await fs.chmod(dir, 0o710);
  }

  async listenTls({
    address,
    port,
    tls: identity,
  }: {
    address: string;
    port: number;
    tls: TlsIdentity;
  }): Promise<{ port: number }> {
    const server = https.createServer(
      {
        ...SERVER_OPTIONS,
        ...identity,
        requestCert: true,
        rejectUnauthorized: true,
        minVersion: TLS_VERSION,
        handshakeTimeout: limits.HEADERS_TIMEOUT_MS,
      },
      this.#handler,
    );
    this.#adopt(server);
    server.on('secureConnection', this.#gate.secured);
    server.on('tlsClientError', (error: NodeJS.ErrnoException, socket) => {
      this.#gate.refused(socket.remoteAddress ?? '', `TLS handshake: ${error.code ?? ''} ${error.message}`);
    });
    server.listen({ host: address, port });
    await listening(server, `${address}:${port}`);
    this.#servers.push(server);
    const bound = server.address();
    if (bound === null || typeof bound === 'string') throw new Error(`listening on ${address} gave no port`);
    return { port: bound.port };
  }

  renewTls({ ca, cert, key }: TlsIdentity): void {
    for (const server of this.#servers)
      if (server instanceof https.Server) server.setSecureContext({ ca, cert, key, minVersion: TLS_VERSION });
  }

  close({ deadlineMs = CLOSE_DEADLINE_MS }: { deadlineMs?: number } = {}): Promise<void> {
    this.#closed ??= this.#close(deadlineMs);
    return this.#closed;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #close(deadlineMs: number): Promise<void> {
    this.#closing.abort(new SnowflockError('unavailable', `${this.#name} is stopping`));
    const closed = this.#servers.map(async (server) => {
      const done = once(server, 'close');
      server.close();
      server.closeIdleConnections();
      await done;
    });
    this.#upgrades.closeAll();
    const drain = setInterval(
      () => this.#servers.forEach((server) => server.closeIdleConnections()),
      DRAIN_POLL_MS,
    );
    const force = setTimeout(() => this.#sockets.forEach((socket) => socket.destroy()), deadlineMs);
    await Promise.all(closed);
    clearInterval(drain);
    clearTimeout(force);
    await this.app.close();
  }

  #adopt(server: http.Server): http.Server {
    server.maxConnections = this.#limits.connections + limits.CONNECTIONS_SPARE;
    server.on('drop', (dropped?: net.DropArgument) =>
      this.#gate.refused(dropped?.remoteAddress ?? '', 'too many connections'),
    );
    server.on('upgrade', this.#upgrades.handle);
    server.on('clientError', onClientError);
    server.on('connection', this.#gate.connected);
    server.on('connection', (socket) => {
      socket.setKeepAlive(true, limits.HEADERS_TIMEOUT_MS);
      this.#sockets.add(socket);
      socket.once('close', () => this.#sockets.delete(socket));
    });
    return server;
  }
}

const TLS_VERSION = 'TLSv1.3';

const SERVER_OPTIONS: http.ServerOptions = {
  maxHeaderSize: limits.HEADERS_MAX_BYTES,
  headersTimeout: limits.HEADERS_TIMEOUT_MS,
  requestTimeout: limits.REQUEST_TIMEOUT_MS,
  keepAliveTimeout: limits.KEEP_ALIVE_MS,
  connectionsCheckingInterval: limits.TIMEOUT_CHECK_MS,
};

/** Before any route is known; the body is not read, so the connection must end. */
function refuse(response: http.ServerResponse, error: SnowflockError): void {
  const body = JSON.stringify({ error: { code: error.code, message: error.message } });
  response.writeHead(error.httpStatus, { 'content-type': 'application/json', connection: 'close' }).end(body);
}

/** Bytes that are no request, or one that is too slow or has too much in its headers. */
function onClientError(error: NodeJS.ErrnoException, socket: Duplex): void {
  // Before the end of its TLS handshake nobody can be answered.
  const isStranger = socket instanceof tls.TLSSocket && !socket.authorized;
  if (isStranger || error.code === 'ECONNRESET') return void socket.destroy();
  if (error.code === 'HPE_HEADER_OVERFLOW') {
    const message = `the headers of a request may have ${limits.HEADERS_MAX_BYTES} bytes`;
    answerError(socket, new SnowflockError('too-large', message), 431);
  } else if (error.code === 'ERR_HTTP_REQUEST_TIMEOUT')
    answerError(socket, new SnowflockError('timeout', 'the request took too long to arrive'), 408);
  else answerError(socket, new SnowflockError('bad-request', `this is not HTTP: ${error.message}`));
}

async function listening(server: http.Server, where: string): Promise<void> {
  try {
    await once(server, 'listening');
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    throw new SnowflockError('unavailable', `cannot listen on ${where}: ${reason}`, { cause: error });
  }
}

async function removeStaleSocket(path: string, name: string): Promise<void> {
  const stat = await fs.lstat(path).catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return null;
    throw error;
  });
  if (stat === null) return;
  if (!stat.isSocket())
    throw new SnowflockError(
      'unavailable',
      `${path} exists and is not a socket; remove it or change run_dir`,
    );
  const probe = net.connect({ path });
  const live = await new Promise<boolean>((resolve) => {
    probe.setTimeout(STALE_PROBE_MS, () => resolve(true));
    probe.once('connect', () => resolve(true));
    probe.once('error', () => resolve(false));
  });
  probe.destroy();
  if (live)
    throw new SnowflockError(
      'unavailable',
      `${path}: ${name} is running already; stop it first, or change run_dir`,
    );
  await fs.rm(path, { force: true });
}
