// Upgrade requests: routed by path and protocol, answered 101 by the handler's accept(), or with an ErrorReply.

import type { IncomingMessage } from 'node:http';
import type { Duplex } from 'node:stream';
import { SnowflockError, toSnowflockError, type ErrorCode, type Role } from '@snowflock/protocol';
import { assertRole, peerOf } from './peer.ts';
import type { Gate } from './gate.ts';
import { subjectOfPath, type Log, type LogSubject } from './log.ts';

/** A handler that has neither accepted nor failed by then is given up: the caller's own deadline is no longer than this. */
const ACCEPT_TIMEOUT_MS = 30_000;

export interface UpgradeRequest {
  /** Path parameters, percent-decoded. */
  readonly params: Readonly<Record<string, string>>;
  readonly query: URLSearchParams;
  /** Aborts when the connection is gone. */
  readonly signal: AbortSignal;
  /** Answers 101; from then on the socket is the handler's. Throws 'interrupted' when the caller has gone. */
  readonly accept: () => Duplex;
}

/** Throwing before accept() answers the error; throwing after it destroys the socket. */
export type UpgradeHandler = (request: UpgradeRequest) => void | Promise<void>;

export interface UpgradeRoute {
  /** Value of the Upgrade header: what the table of routes gives as the reply. */
  readonly reply: string;
  /** As `/v1/vms/:vm/exec`. */
  readonly path: string;
  readonly roles: readonly Role[];
}

export class UpgradeRouter {
  readonly #routes: {
    readonly route: UpgradeRoute;
    readonly segments: readonly string[];
    readonly handler: UpgradeHandler;
  }[] = [];
  readonly #sockets = new Set<Duplex>();
  readonly #log: Log;
  readonly #onError: (code: ErrorCode) => void;

  readonly #gate: Gate;

  constructor(parts: { log: Log; gate: Gate; onError: (code: ErrorCode) => void }) {
    this.#log = parts.log;
    this.#gate = parts.gate;
    this.#onError = parts.onError;
  }

  add(route: UpgradeRoute, handler: UpgradeHandler): void {
    this.#routes.push({ route, segments: route.path.split('/'), handler });
  }

  /** Listener for a server's 'upgrade' event. */
  readonly handle = (message: IncomingMessage, socket: Duplex, head: Buffer): void => {
    this.#sockets.add(socket);
    const gone = new AbortController();
    socket.on('error', (error) =>
      this.#log.debug({ err: error, url: message.url }, 'upgraded connection failed'),
    );
    socket.once('close', () => {
      this.#sockets.delete(socket);
      gone.abort(new SnowflockError('interrupted', 'the caller is gone'));
    });
    let accepted = false;
    let subject: LogSubject = {};
    const fail = (thrown: unknown): void => {
      const error = toSnowflockError(thrown);
      this.#onError(error.code);
      const fields = { ...subject, url: message.url, code: error.code, reason: error.message };
      this.#log.info(fields, 'upgrade failed');
      if (accepted) socket.destroy();
      else answerError(socket, error);
    };
    const timer = setTimeout(() => {
      fail(
        new SnowflockError('timeout', `${message.url ?? ''}: not accepted within ${ACCEPT_TIMEOUT_MS} ms`),
      );
    }, ACCEPT_TIMEOUT_MS);
    socket.once('close', () => clearTimeout(timer));
    const run = async (): Promise<void> => {
      this.#gate.admit(message, socket);
      const { found, params, query } = this.#find(message);
      subject = subjectOfPath(params);
      assertRole(peerOf(message.socket), found.route.roles, `${found.route.path} (${found.route.reply})`);
      const accept = (): Duplex => {
        clearTimeout(timer);
        if (socket.destroyed || socket.writableEnded)
          throw new SnowflockError('interrupted', 'the caller is gone');
        accepted = true;
        socket.write(
          `HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: ${found.route.reply}\r\n\r\n`,
        );
        if (head.length > 0) socket.unshift(head);
        return socket;
      };
      await found.handler({ params, query, signal: gone.signal, accept });
      if (!accepted)
        throw new SnowflockError(
          'internal',
          `${found.route.path}: the upgrade was neither accepted nor refused`,
        );
    };
    run().catch(fail);
  };

  closeAll(): void {
    for (const socket of this.#sockets) socket.destroy();
  }

  #find(message: IncomingMessage) {
    const url = URL.parse(message.url ?? '/', 'http://localhost');
    if (!url) throw new SnowflockError('bad-request', 'the path of the request is not one');
    const segments = url.pathname.split('/');
    const protocol = message.headers.upgrade ?? '';
    for (const candidate of this.#routes) {
      const params = match(candidate.segments, segments);
      if (params && candidate.route.reply === protocol)
        return { found: candidate, params, query: url.searchParams };
    }
    throw new SnowflockError('bad-request', `nothing here upgrades ${url.pathname} to '${protocol}'`);
  }
}

function match(pattern: readonly string[], segments: readonly string[]): Record<string, string> | null {
  if (pattern.length !== segments.length) return null;
  const params: Record<string, string> = {};
  for (const [index, part] of pattern.entries()) {
    const segment = segments[index] ?? '';
    if (part.startsWith(':')) params[part.slice(1)] = decode(segment);
    else if (part !== segment) return null;
  }
  return params;
}

function decode(segment: string): string {
  try {
    return decodeURIComponent(segment);
  } catch (error) {
    throw new SnowflockError('bad-request', `'${segment}' in the path is not valid percent-encoding`, {
      cause: error,
    });
  }
}

/** A caller that does not read its answer is cut. */
const ANSWER_TIMEOUT_MS = 5000;

/** Answers where there is no response object; the connection ends with it. */
export function answerError(socket: Duplex, error: SnowflockError, status = error.httpStatus): void {
  if (socket.destroyed || socket.writableEnded) return;
  const late = setTimeout(() => socket.destroy(), ANSWER_TIMEOUT_MS);
  socket.once('close', () => clearTimeout(late));
  const body = JSON.stringify({ error: { code: error.code, message: error.message } });
  socket.end(
    `HTTP/1.1 ${status} Error\r\nContent-Type: application/json\r\nContent-Length: ${Buffer.byteLength(body)}\r\nConnection: close\r\n\r\n${body}`,
    () => socket.destroy(),
  );
}
