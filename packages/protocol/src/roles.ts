// Who a caller is, as its certificate says (docs/security.md).

/**
 * master: sfmd itself. host: the sfld of one host. operator: people who start and end clusters. read-only: people and
 * programs who look. On a daemon's unix socket, whose file permissions decide, the caller is an operator.
 */
export const ROLES = ['master', 'host', 'operator', 'read-only'] as const;
export type Role = (typeof ROLES)[number];

export function isRole(value: unknown): value is Role {
  return typeof value === 'string' && (ROLES as readonly string[]).includes(value);
}
