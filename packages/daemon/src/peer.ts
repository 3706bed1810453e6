// Who is at the other end of a connection: by its certificate, or on the unix socket, whose file permissions have decided.

import type { Duplex } from 'node:stream';
import * as tls from 'node:tls';
import { isRole, SnowflockError, type Role } from '@snowflock/protocol';

export interface Peer {
  readonly role: Role;
  /** commonName of its certificate, for messages. */
  readonly name: string;
  /** Whether its certificate is for this host; an operator speaks for any. */
  readonly isHost: (host: string) => boolean;
  /** False on the unix socket. */
  readonly certificate: boolean;
  /** DNS names and addresses in its certificate. */
  readonly altNames: () => string[];
}

const LOCAL: Peer = {
  role: 'operator',
  name: 'the unix socket',
  isHost: () => true,
  certificate: false,
  altNames: () => [],
};

/** What was found out once for a connection holds as long as it does; expiry is looked at each time. */
const known = new WeakMap<tls.TLSSocket, { readonly peer: Peer; readonly expiresAtMs: number }>();

/** Throws 'unauthorized' for a certificate without a role (one of another purpose, or of an old release) or past its time. */
export function peerOf(socket: Duplex): Peer {
  if (!(socket instanceof tls.TLSSocket)) return LOCAL;
  const found = known.get(socket) ?? readCertificate(socket);
  known.set(socket, found);
  if (found.expiresAtMs <= Date.now())
    throw new SnowflockError(
      'unauthorized',
      `the certificate of '${found.peer.name}' has expired; renew it: snowflock enroll --renew`,
    );
  return found.peer;
}

/** Serial number of the peer's certificate; null without one, and on a connection that has closed. */
export function serialOf(socket: tls.TLSSocket): string | null {
  const certificate = socket.getPeerCertificate() as Partial<tls.PeerCertificate> | null;
  return certificate?.serialNumber ?? null;
}

function readCertificate(socket: tls.TLSSocket): { peer: Peer; expiresAtMs: number } {
  const certificate = socket.getPeerCertificate() as tls.PeerCertificate | null;
  // Several units would be several roles: then it has none.
  const role: unknown = certificate?.subject?.OU;
  const name: unknown = certificate?.subject?.CN;
  if (!certificate || !isRole(role) || typeof name !== 'string')
    throw new SnowflockError(
      'unauthorized',
      "the caller's certificate has no SnowFlock role; issue a new one: snowflock enroll, or snowflock cert issue",
    );
  const isHost = (host: string): boolean =>
    role === 'operator' || (role === 'host' && tls.checkServerIdentity(host, certificate) === undefined);
  const altNames = (): string[] => altNamesOf(certificate.subjectaltname ?? '');
  return {
    peer: { role, name, isHost, certificate: true, altNames },
    expiresAtMs: Date.parse(certificate.valid_to),
  };
}

/** From how Node writes them. Names with anything unusual in them would be quoted; ours never are. */
export function altNamesOf(subjectAltName: string): string[] {
  return [...subjectAltName.matchAll(/(?:DNS|IP Address):([A-Za-z0-9.:-]+)/g)].map((match) => match[1] ?? '');
}

/** Throws 'unauthorized' unless the route is for callers of this role. */
export function assertRole(peer: Peer, roles: readonly Role[], what: string): void {
  if (roles.includes(peer.role)) return;
  throw new SnowflockError(
    'unauthorized',
    `${what} is for ${roles.join(', ')}; '${peer.name}' has the role ${peer.role}`,
  );
}
