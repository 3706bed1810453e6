// Enrolment tokens: what an operator carries from the master host to a new host.
//
//   sf1_ + base64url( SHA-256 of the authority's certificate, 32 bytes | secret, 24 bytes )
//
// The fingerprint lets the new host know the master before it says anything; the secret lets the master know the host. The
// master keeps a hash of the secret; a fast one will do, since the secret is random and long.

import { createHash, randomBytes, timingSafeEqual } from 'node:crypto';
import { SnowflockError } from '@snowflock/protocol';

const PREFIX = 'sf1_';
const FINGERPRINT_BYTES = 32;
const SECRET_BYTES = 24;

export interface EnrolToken {
  readonly fingerprint: Buffer;
  /** base64url; what is sent to the master. */
  readonly secret: string;
}

export function newSecret(): string {
  return randomBytes(SECRET_BYTES).toString('base64url');
}

export function formatToken({ fingerprint, secret }: EnrolToken): string {
  return PREFIX + Buffer.concat([fingerprint, Buffer.from(secret, 'base64url')]).toString('base64url');
}

/** Never says what it was given. */
export function parseToken(text: string): EnrolToken {
  const bytes = text.startsWith(PREFIX)
    ? Buffer.from(text.slice(PREFIX.length), 'base64url')
    : Buffer.alloc(0);
  if (bytes.length !== FINGERPRINT_BYTES + SECRET_BYTES)
    throw new SnowflockError(
      'bad-request',
      `this is not an enrolment token; 'snowflock enroll --issue HOST' on the master host prints one (${PREFIX}...)`,
    );
  return {
    fingerprint: bytes.subarray(0, FINGERPRINT_BYTES),
    secret: bytes.subarray(FINGERPRINT_BYTES).toString('base64url'),
  };
}

export function hashSecret(secret: string): string {
  return createHash('sha256').update(`snowflock enrolment token ${secret}`).digest('hex');
}

/** In constant time. */
export function isSecret(secret: string, hash: string): boolean {
  return timingSafeEqual(Buffer.from(hashSecret(secret), 'hex'), Buffer.from(hash, 'hex'));
}
