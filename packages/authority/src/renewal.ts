// When a certificate is to be renewed: after two thirds of its life, each at its own moment.

import type { X509Certificate } from 'node:crypto';
import { BACKDATED_MS } from './openssl.ts';

/** Of a life: the first moment, and how long after it the last one may come by chance. */
const RENEW_AFTER = 2 / 3;
const SPREAD = 1 / 12;
/** Nobody asks more often, however little time is left. */
const RETRY_MIN_MS = 1000;
/** For a month or more of time left: an authority whose key was taken away may be brought back any day. */
const RETRY_MAX_MS = 24 * 3600 * 1000;
/** Once it is too late: whoever brings a new one by hand is noticed anyway. */
const RETRY_EXPIRED_MS = 10 * 60 * 1000;

export interface RenewalWindow {
  readonly fromMs: number;
  readonly untilMs: number;
  readonly expiresMs: number;
}

/** Wall clock, ms since 1970. */
export function renewalWindow(certificate: Pick<X509Certificate, 'validFrom' | 'validTo'>): RenewalWindow {
  const expiresMs = Date.parse(certificate.validTo);
  const validFromMs = Date.parse(certificate.validFrom);
  // The authority dates what it issues back.
  const madeMs = validFromMs + BACKDATED_MS < expiresMs ? validFromMs + BACKDATED_MS : validFromMs;
  const lifeMs = expiresMs - madeMs;
  return {
    fromMs: madeMs + lifeMs * RENEW_AFTER,
    untilMs: madeMs + lifeMs * (RENEW_AFTER + SPREAD),
    expiresMs,
  };
}

/** How long to wait after a renewal that failed. `random`: from 0 to 1. */
export function renewalRetryMs({ leftMs, random }: { leftMs: number; random: number }): number {
  if (leftMs <= 0) return RETRY_EXPIRED_MS;
  return Math.max(RETRY_MIN_MS, Math.min(RETRY_MAX_MS, leftMs / 10) * (0.5 + random / 2));
}
