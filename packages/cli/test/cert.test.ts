import { expect, it } from 'vitest';
import { formatCertificates } from '../src/commands/cert.ts';

it('certificates are listed with what is left of each', () => {
  const now = Date.parse('2030-01-01T00:00:00Z');
  const one = { name: 'host1', role: 'host', serial: 'AB', revokedAt: null } as const;
  const text = formatCertificates(
    [
      { ...one, notAfter: '2030-12-31T00:00:00Z' },
      { ...one, notAfter: '2030-01-03T12:30:00Z', revokedAt: '2029-12-01T00:00:00Z' },
      { ...one, notAfter: '2029-12-31T23:59:59Z' },
    ],
    now,
  );
  expect(text.split('\n').map((line) => line.trimEnd().split(/ {2,}/))).toEqual([
    ['NAME', 'ROLE', 'UNTIL', 'LEFT', 'STATE', 'SERIAL'],
    ['host1', 'host', '2030-12-31', '364 d', 'valid', 'AB'],
    ['host1', 'host', '2030-01-03', '60 h', 'revoked 2029-12-01', 'AB'],
    ['host1', 'host', '2029-12-31', 'expired', 'valid', 'AB'],
    [''],
  ]);
});
