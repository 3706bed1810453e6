// In front of all routes: who is over a limit, or has a revoked certificate, gets no further.
//
//   connection ──▶ counted ──handshake──▶ certificate looked at ──request──▶ counted, or refused (429, 503) and closed
//                     └── far over the limit, or revoked: cut
//
// Invariants: what is counted is uncounted when it closes; a connection with a revoked certificate is cut within the call
// that made it known.

import type { IncomingMessage, ServerResponse } from 'node:http';
import type { Socket } from 'node:net';
import type { Duplex } from 'node:stream';
import type * as tls from 'node:tls';
import { SnowflockError, type HttpLimits } from '@snowflock/protocol';
import { peerOf, serialOf } from './peer.ts';
import type { Log } from './log.ts';
import type { RevokedCertificates } from './revoked-certificates.ts';

/** A flood of refusals must not become a flood of log lines. */
const LOG_EVERY_MS = 1000;

/** Counts by key; keys that count nothing are not kept. */
class Tally {
  readonly #counts = new Map<string, number>();
  total = 0;

  of(key: string): number {
    return this.#counts.get(key) ?? 0;
  }

  add(key: string, change: 1 | -1): void {
    const count = this.of(key) + change;
    if (count === 0) this.#counts.delete(key);
    else this.#counts.set(key, count);
    this.total += change;
  }
}

export class Gate {
  readonly #limits: HttpLimits;
  readonly #revoked: RevokedCertificates;
  readonly #log: Log;
  readonly #connections = new Tally();
  readonly #requests = new Tally();
  /** Why requests on a connection are refused, by wayOf. */
  readonly #overfull = new Map<Duplex | string, SnowflockError>();
  readonly #secure = new Set<tls.TLSSocket>();
  #loggedAtMs = -LOG_EVERY_MS;
  #unlogged = 0;

  constructor(options: { limits: HttpLimits; revoked: RevokedCertificates; log: Log }) {
    this.#limits = options.limits;
    this.#revoked = options.revoked;
    this.#log = options.log;
    options.revoked.onChange(() => this.#cutRevoked());
  }

  /** Listener for a server's 'connection' event: TCP or unix, before any handshake. */
  readonly connected = (socket: Socket): void => {
    const peer = socket.remoteAddress ?? 'the unix socket';
    this.#connections.add(peer, 1);
    socket.once('close', () => this.#connections.add(peer, -1));
    const { connections, connectionsPerPeer } = this.#limits;
    const ofPeer = this.#connections.of(peer);
    if (ofPeer > 2 * connectionsPerPeer) {
      this.refused(peer, `more than ${2 * connectionsPerPeer} connections from one address`);
      socket.destroy();
      return;
    }
    const overfull =
      ofPeer > connectionsPerPeer
        ? tooMany(`${connectionsPerPeer} connections from ${peer} (max_connections_per_peer)`)
        : this.#connections.total > connections
          ? tooFull(`${connections} connections (max_connections)`)
          : null;
    if (!overfull) return;
    const way = wayOf(socket);
    this.#overfull.set(way, overfull);
    socket.once('close', () => this.#overfull.delete(way));
  };

  /** Listener for a server's 'secureConnection' event. */
  readonly secured = (socket: tls.TLSSocket): void => {
    const serial = serialOf(socket);
    if (serial === null || this.#revoked.has(serial)) {
      this.refused(socket.remoteAddress ?? '', `certificate ${serial ?? '(none)'} is revoked`);
      socket.destroy();
      return;
    }
    this.#secure.add(socket);
    socket.once('close', () => this.#secure.delete(socket));
  };

  /** Throws when this connection, or the daemon, has too much under way; else counts it until `until` closes. */
  admit(message: IncomingMessage, until: Duplex | ServerResponse): void {
    const { socket } = message;
    const overfull = this.#overfull.get(wayOf(socket));
    if (overfull) throw overfull;
    const { name } = peerOf(socket);
    const { requests, requestsPerPeer } = this.#limits;
    if (this.#requests.of(name) >= requestsPerPeer)
      throw tooMany(`${requestsPerPeer} requests of '${name}' under way (max_requests_per_peer)`);
    if (this.#requests.total >= requests) throw tooFull(`${requests} requests under way (max_requests)`);
    this.#requests.add(name, 1);
    until.once('close', () => this.#requests.add(name, -1));
  }

  /** Logs that somebody was turned away before he could be answered; at most one line a second. */
  refused(peer: string, reason: string): void {
    this.#unlogged += 1;
    if (performance.now() - this.#loggedAtMs < LOG_EVERY_MS) return;
    this.#log.warn({ peer, reason, times: this.#unlogged }, 'connection refused');
    this.#loggedAtMs = performance.now();
    this.#unlogged = 0;
  }

  #cutRevoked(): void {
    for (const socket of this.#secure) {
      const serial = serialOf(socket);
      if (serial !== null && !this.#revoked.has(serial)) continue;
      this.#log.warn({ peer: socket.remoteAddress, serial }, 'connection cut: its certificate was revoked');
      socket.destroy();
    }
  }
}

/** Names a connection, whichever of the two sockets of TLS is at hand. */
function wayOf(socket: Socket): Duplex | string {
  const { remoteAddress, remotePort } = socket;
  return remoteAddress === undefined ? socket : `${remoteAddress} ${remotePort ?? 0}`;
}

function tooMany(what: string): SnowflockError {
  return new SnowflockError('busy', `too many: ${what}; try again when some have ended`);
}

function tooFull(what: string): SnowflockError {
  return new SnowflockError('unavailable', `this daemon is full: ${what}; try again later`);
}
