// The one listener that needs no certificate, for hosts that have none yet; they need a token instead.
//
//   closed ──a token is open──▶ listening ──the last token is used, revoked or expired──▶ closed
//
// Invariants: it listens only while a token is open; it knows one request, reads at most BODY_MAX_BYTES of it, and answers
// every connection once; neither tokens nor keys are logged.

import { once } from 'node:events';
import type * as http from 'node:http';
import * as https from 'node:https';
import { setTimeout as sleep } from 'node:timers/promises';
import {
  EnrolRequest,
  SnowflockError,
  toSnowflockError,
  type CertificateReply,
  type TlsIdentity,
} from '@snowflock/protocol';
import { parseInput } from '../http-routes.ts';
import type { Log } from '../log.ts';

/** A signing request is 400 bytes. */
const BODY_MAX_BYTES = 8192;
const HEADERS_MAX_BYTES = 2048;
const CONNECTIONS_MAX = 16;
const HANDSHAKE_TIMEOUT_MS = 5000;
const REQUEST_TIMEOUT_MS = 10_000;
const TIMEOUT_CHECK_MS = 500;
/** Guessing 192 random bits is hopeless anyway; this bounds the work that strangers can cause. */
const REQUESTS_MAX = 20;
const REQUESTS_WINDOW_MS = 10_000;
/** A failed attempt is answered this late. */
const FAILURE_DELAY_MS = 300;
/** Node's timers overflow above 24 days; it is looked at again then. */
const TIMER_MAX_MS = 24 * 3600 * 1000;

export interface EnrollListenerOptions {
  readonly address: string;
  readonly port: number;
  readonly tls: TlsIdentity;
  readonly log: Log;
  readonly tokensUntil: () => number | null;
  readonly enroll: (request: EnrolRequest) => Promise<CertificateReply>;
}

export class EnrollListener implements AsyncDisposable {
  readonly #options: EnrollListenerOptions;
  readonly #recentMs: number[] = [];
  #tls: TlsIdentity;
  #server: https.Server | undefined;
  #timer: NodeJS.Timeout | undefined;
  #changes: Promise<unknown> = Promise.resolve();
  #disposed = false;

  constructor(options: EnrollListenerOptions) {
    this.#options = options;
    this.#tls = options.tls;
  }

  /** Another certificate for the connections that are made from now on. */
  renewTls(tls: TlsIdentity): void {
    this.#tls = tls;
    this.#server?.setSecureContext(secureContext(tls));
  }

  /** Null while it does not listen. */
  get port(): number | null {
    const bound = this.#server?.address();
    return bound && typeof bound === 'object' ? bound.port : null;
  }

  /** Opens or closes, as the open tokens say; to be called when they have changed. */
  update(): Promise<void> {
    const change = this.#changes.then(() => this.#update());
    this.#changes = change.catch(() => undefined); // told to whoever asked
    return change;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#disposed = true;
    await this.update();
  }

  async #update(): Promise<void> {
    clearTimeout(this.#timer);
    const until = this.#disposed ? null : this.#options.tokensUntil();
    if (until === null) return this.#close();
    const remainingMs = Math.min(until - Date.now() + 1, TIMER_MAX_MS);
    this.#timer = setTimeout(
      () => void this.update().catch((error: unknown) => this.#failed(error)),
      remainingMs,
    );
    this.#timer.unref();
    if (!this.#server) await this.#open();
  }

  #failed(error: unknown): void {
    this.#options.log.error({ err: error }, 'the enrolment listener cannot be opened or closed');
  }

  async #open(): Promise<void> {
    const { address, port, log } = this.#options;
    const server = https.createServer(
      {
        ...secureContext(this.#tls),
        handshakeTimeout: HANDSHAKE_TIMEOUT_MS,
        maxHeaderSize: HEADERS_MAX_BYTES,
        headersTimeout: REQUEST_TIMEOUT_MS,
        requestTimeout: REQUEST_TIMEOUT_MS,
        connectionsCheckingInterval: TIMEOUT_CHECK_MS,
      },
      (request, response) => void this.#answer(request, response),
    );
    server.maxConnections = CONNECTIONS_MAX;
    server.on('clientError', (_error, socket) => void socket.destroy());
    server.listen({ host: address, port });
    try {
      await once(server, 'listening');
    } catch (error) {
      const reason = error instanceof Error ? error.message : String(error);
      throw new SnowflockError(
        'unavailable',
        `cannot listen for enrolment on ${address}:${port}: ${reason}`,
        {
          cause: error,
        },
      );
    }
    this.#server = server;
    log.info({ port: this.port }, 'listening for enrolment while a token is open');
  }

  async #close(): Promise<void> {
    const server = this.#server;
    if (!server) return;
    this.#server = undefined;
    const closed = once(server, 'close');
    server.close();
    // The answer to the last enrolment may be under way.
    const late = setTimeout(() => server.closeAllConnections(), REQUEST_TIMEOUT_MS);
    if (this.#disposed) server.closeAllConnections();
    else server.closeIdleConnections();
    await closed;
    clearTimeout(late);
    this.#options.log.info({}, 'no token is open: enrolment is closed');
  }

  async #answer(request: http.IncomingMessage, response: http.ServerResponse): Promise<void> {
    const peer = request.socket.remoteAddress;
    try {
      this.#countAttempt();
      if (request.method !== 'POST' || request.url !== '/v1/enroll')
        throw new SnowflockError('bad-request', 'here hosts enrol, with POST /v1/enroll, and nothing else');
      const asked = parseInput(EnrolRequest, await readBody(request));
      const reply = await this.#options.enroll(asked);
      this.#options.log.info({ peer, host: asked.host }, 'host enrolled');
      send(response, 200, reply);
    } catch (thrown) {
      const error = toSnowflockError(thrown);
      this.#options.log.warn({ peer, code: error.code, reason: error.message }, 'enrolment refused');
      await sleep(FAILURE_DELAY_MS, undefined, { ref: false });
      send(response, error.httpStatus, { error: { code: error.code, message: error.message } });
    }
    // Not waited for: closing waits for this answer.
    this.update().catch((error: unknown) => this.#failed(error));
  }

  #countAttempt(): void {
    const now = performance.now();
    while ((this.#recentMs[0] ?? now) < now - REQUESTS_WINDOW_MS) this.#recentMs.shift();
    if (this.#recentMs.length >= REQUESTS_MAX)
      throw new SnowflockError(
        'busy',
        `more than ${REQUESTS_MAX} attempts to enrol in ${REQUESTS_WINDOW_MS / 1000} s; try again later`,
      );
    this.#recentMs.push(now);
  }
}

async function readBody(request: http.IncomingMessage): Promise<unknown> {
  const chunks: Buffer[] = [];
  let sizeBytes = 0;
  for await (const chunk of request as AsyncIterable<Buffer>) {
    sizeBytes += chunk.length;
    if (sizeBytes > BODY_MAX_BYTES)
      throw new SnowflockError('too-large', `a request to enrol may have ${BODY_MAX_BYTES} bytes`);
    chunks.push(chunk);
  }
  try {
    return JSON.parse(Buffer.concat(chunks).toString('utf8')) as unknown;
  } catch (error) {
    throw new SnowflockError('bad-request', 'the request is not JSON', { cause: error });
  }
}

function send(response: http.ServerResponse, status: number, body: unknown): void {
  if (response.destroyed) return;
  response.writeHead(status, { 'content-type': 'application/json', connection: 'close' });
  response.end(JSON.stringify(body));
}

/** With the authority's certificate in the chain: new hosts know its fingerprint and nothing else. */
function secureContext(tls: TlsIdentity) {
  const cert = Buffer.concat([tls.cert, Buffer.from('\n'), tls.ca]);
  return { cert, key: tls.key, minVersion: 'TLSv1.3' } as const;
}
