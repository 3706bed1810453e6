// A control server: one set of routes on several authenticated listeners.
//
//   created ──ready()──▶ listening on a unix socket (mode 0600) and/or TCP with mutual TLS ──close()──▶ closed
//
// Invariants: there is no listener without authentication; upgrades exist only on these listeners; after close() no
// socket of any listener is open, whatever its peer does.

import Fastify, { type FastifyError, type FastifyInstance } from 'fastify';
import { once } from 'node:events';
import * as fs from 'node:fs/promises';
import * as http from 'node:http';
import * as https from 'node:https';
import * as net from 'node:net';
import { dirname } from 'node:path';
import { z } from 'zod';
import { DESCRIPTOR_MAX_BYTES, isErrorCode, SnowflockError, type TlsIdentity } from '@snowflock/protocol';
import { badInput } from './http-routes.ts';
import { UpgradeRouter, type UpgradeHandler, type UpgradeRoute } from './http-upgrade.ts';
import type { Log } from './log.ts';

/** No control message in JSON comes near: a ticket of 1024 clones is about 100 KB. */
const JSON_BODY_MAX_BYTES = 1 << 20;
/** Per listener: every host's and client's connections, long polls included, with room to spare. */
const CONNECTIONS_MAX = 4096;
/** A peer must have sent its TLS handshake and its request headers by then, and its whole request by the other. */
const HEADERS_TIMEOUT_MS = 10_000;
const REQUEST_TIMEOUT_MS = 120_000;
/** Longer than what clients are told to keep idle connections for. */
const KEEP_ALIVE_MS = 65_000;
/** How long close() lets running requests finish unless told otherwise. */
const CLOSE_DEADLINE_MS = 2000;
/** A connection whose last request ends after close() began is idle again: look for those this often. */
const DRAIN_POLL_MS = 20;
/** Connecting to a socket file tells at once whether somebody listens on it. */
const STALE_PROBE_MS = 1000;

export interface ControlServer extends AsyncDisposable {
  readonly app: FastifyInstance;
  /** Aborts when close() begins: for handlers that wait. */
  readonly closing: AbortSignal;
  onUpgrade(route: UpgradeRoute, handler: UpgradeHandler): void;
  /** Mode 0600; the directory is made with 0700; a dead server's socket file is replaced, a live one's is an error. */
  listenUnix(path: string): Promise<void>;
  /** TCP with mutual TLS: callers without a certificate of the CA are refused in the handshake. Port 0: any. */
  listenTls(options: { address: string; port: number; tls: TlsIdentity }): Promise<{ port: number }>;
  close(options?: { deadlineMs?: number }): Promise<void>;
}

export interface ControlServerOptions {
  /** Of the daemon, for messages. */
  readonly name: string;
  readonly log: Log;
  readonly register: (app: FastifyInstance) => void;
}

/** Builds the routes. Add upgrades, then listen. The caller owns it and must close() it. */
export async function createControlServer({
  name,
  log,
  register,
}: ControlServerOptions): Promise<ControlServer> {
  let handler: http.RequestListener | undefined;
  // Fastify serves exactly one server; ours never listens, and hands its request handler to all the real listeners.
  const app = Fastify({
    logger: false,
    bodyLimit: JSON_BODY_MAX_BYTES,
    serverFactory: (listener) => {
      handler = listener;
      return http.createServer();
    },
  });
  app.addContentTypeParser(
    'application/octet-stream',
    { parseAs: 'buffer', bodyLimit: DESCRIPTOR_MAX_BYTES },
    (_request, body, done) => done(null, body),
  );
  setErrorHandlers(app, { name, log });
  register(app);
  await app.ready();
  if (handler === undefined) throw new Error('fastify did not build its request handler');
  return new Listeners({ app, handler, name, log });
}

function setErrorHandlers(app: FastifyInstance, { name, log }: { name: string; log: Log }): void {
  app.setErrorHandler((thrown: FastifyError, request, reply) => {
    const { error, status } = classify(thrown);
    const fields = { method: request.method, url: request.url, status, code: error.code };
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
      { method: request.method, url: request.url, status: reply.statusCode, ms: reply.elapsedTime },
      'answered',
    );
    done();
  });
}

function classify(thrown: FastifyError | SnowflockError | z.ZodError): {
  error: SnowflockError;
  status: number;
} {
  if (thrown instanceof SnowflockError) return { error: thrown, status: thrown.httpStatus };
  if (thrown instanceof z.ZodError) return { error: badInput(thrown, 'body'), status: 400 };
  // Fastify's own: malformed JSON, a body over the limit, a content type nobody parses.
  const status = thrown.statusCode ?? 500;
  if (status >= 400 && status < 500 && !isErrorCode(thrown.code))
    return { error: new SnowflockError('bad-request', thrown.message, { cause: thrown }), status };
  return { error: new SnowflockError('internal', thrown.message, { cause: thrown }), status: 500 };
}

class Listeners implements ControlServer {
  readonly app: FastifyInstance;
  readonly #handler: http.RequestListener;
  readonly #name: string;
  readonly #log: Log;
  readonly #servers: http.Server[] = [];
  readonly #sockets = new Set<net.Socket>();
  readonly #upgrades: UpgradeRouter;
  readonly #closing = new AbortController();
  #closed: Promise<void> | undefined;

  constructor(parts: { app: FastifyInstance; handler: http.RequestListener; name: string; log: Log }) {
    this.app = parts.app;
    this.#handler = parts.handler;
    this.#name = parts.name;
    this.#log = parts.log;
    this.#upgrades = new UpgradeRouter(parts.log);
  }

  get closing(): AbortSignal {
    return this.#closing.signal;
  }

  onUpgrade(route: UpgradeRoute, handler: UpgradeHandler): void {
    this.#upgrades.add(route, handler);
  }

  async listenUnix(path: string): Promise<void> {
    await fs.mkdir(dirname(path), { recursive: true, mode: 0o700 });
    await removeStaleSocket(path, this.#name);
    const server = this.#adopt(http.createServer(this.#handler));
    // The socket file appears within listen(): the mask makes it 0600 from its first moment.
    const mask = process.umask(0o177);
    try {
      server.listen({ path });
    } finally {
      process.umask(mask);
    }
    await listening(server, path);
    this.#servers.push(server);
    await fs.chmod(path, 0o600);
  }

  async listenTls({
    address,
    port,
    tls,
  }: {
    address: string;
    port: number;
    tls: TlsIdentity;
  }): Promise<{ port: number }> {
    const server = https.createServer(
      {
        ...tls,
        requestCert: true,
        rejectUnauthorized: true,
        minVersion: 'TLSv1.3',
        handshakeTimeout: HEADERS_TIMEOUT_MS,
      },
      this.#handler,
    );
    this.#adopt(server);
    server.on('tlsClientError', (error: NodeJS.ErrnoException, socket) => {
      this.#log.warn(
        { peer: socket.remoteAddress, code: error.code, reason: error.message },
        'TLS handshake refused',
      );
    });
    server.listen({ host: address, port });
    await listening(server, `${address}:${port}`);
    this.#servers.push(server);
    const bound = server.address();
    if (bound === null || typeof bound === 'string') throw new Error(`listening on ${address} gave no port`);
    return { port: bound.port };
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
    server.maxConnections = CONNECTIONS_MAX;
    server.headersTimeout = HEADERS_TIMEOUT_MS;
    server.requestTimeout = REQUEST_TIMEOUT_MS;
    server.keepAliveTimeout = KEEP_ALIVE_MS;
    server.on('upgrade', this.#upgrades.handle);
    server.on('connection', (socket) => {
      socket.setKeepAlive(true, HEADERS_TIMEOUT_MS);
      this.#sockets.add(socket);
      socket.once('close', () => this.#sockets.delete(socket));
    });
    return server;
  }
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
