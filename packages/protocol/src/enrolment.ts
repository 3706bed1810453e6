// Messages about certificates: enrolment of hosts, renewal, certificates for people, revocation (docs/security.md).

import { z } from 'zod';
import { hostName } from './control.ts';
import { ROLES } from './roles.ts';

const csr = z.string().max(4096);
const pem = z.string().max(65_536);
const name = z
  .string()
  .regex(/^[A-Za-z0-9][A-Za-z0-9.:_-]{0,63}$/, 'must be a name: up to 64 letters, digits, . : _ -');
/** A month; a token is for now. */
export const TOKEN_MINUTES_MAX = 31 * 24 * 60;
export const CERTIFICATE_DAYS_LIMIT = 1095;

/** POST sfmd's enrolment port /v1/enroll: the only request that needs no certificate; it needs a token's secret. */
export const EnrolRequest = z.object({ secret: z.string().max(64), host: hostName, csr });
export type EnrolRequest = z.infer<typeof EnrolRequest>;

export const CertificateReply = z.object({ cert: pem, ca: pem });
export type CertificateReply = z.infer<typeof CertificateReply>;

export const RenewRequest = z.object({ csr });

export const TokenRequest = z.object({
  host: hostName.max(64),
  /** Further names and addresses of the host. */
  altNames: z.array(hostName).max(16).default([]),
  validMinutes: z.int().min(1).max(TOKEN_MINUTES_MAX),
});
export const TokenReply = z.object({ token: z.string(), expiresAt: z.iso.datetime(), port: z.int() });
export type TokenReply = z.infer<typeof TokenReply>;

export const CertificateRequest = z.object({
  name,
  role: z.enum(['operator', 'read-only']),
  csr,
  days: z.int().min(1).max(CERTIFICATE_DAYS_LIMIT),
});

export const CertificateInfo = z.object({
  serial: z.string(),
  name: z.string(),
  role: z.enum(ROLES),
  notAfter: z.iso.datetime(),
  revokedAt: z.iso.datetime().nullable(),
});
export type CertificateInfo = z.infer<typeof CertificateInfo>;

export const RevokeRequest = z.object({
  name,
  /** Absent: whatever it has, except sfmd's own. */
  role: z.enum(ROLES).optional(),
});
