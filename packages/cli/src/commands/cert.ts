// snowflock cert issue|list, snowflock revoke: certificates for people, and their end. On the master host.

import { Command, Option } from 'commander';
import { existsSync } from 'node:fs';
import { resolve } from 'node:path';
import { z } from 'zod';
import { identityFiles, newKey, newRequest, writeIdentity } from '@snowflock/authority';
import { CertificateInfo, CertificateReply, ROLES, SnowflockError, type Role } from '@snowflock/protocol';
import { MASTER_SOCKET_OPTION, openMasterClient } from '../sfmd-socket.ts';
import { formatTable } from '../table.ts';
import { parseCount } from './arguments.ts';

const TIMEOUT_MS = 30_000;
const DAYS = 365;

function issueCommand(): Command {
  return new Command('issue')
    .description(
      'Makes a key and a certificate for a person or a program: DIR/NAME.key, DIR/NAME.crt and DIR/ca.crt.',
    )
    .argument('<name>', 'who gets it; for people, and for revoke')
    .addOption(
      new Option('--role <role>', 'what it may be used for')
        .choices(['operator', 'read-only'])
        .makeOptionMandatory(),
    )
    .option('--days <n>', 'how long it is good', parseCount, DAYS)
    .option('--dir <dir>', 'where the files go', '.')
    .option(...MASTER_SOCKET_OPTION)
    .action(async (name: string, options: { role: Role; days: number; dir: string; socket?: string }) => {
      const files = identityFiles(resolve(options.dir), name);
      for (const path of [files.cert, files.key])
        if (existsSync(path))
          throw new SnowflockError('bad-request', `${path} is there already; it is not replaced`);
      using client = openMasterClient(options);
      const key = newKey();
      const { role, days } = options;
      const reply = await client.request({
        method: 'POST',
        path: '/v1/certificates',
        body: { name, role, days, csr: await newRequest(key) },
        reply: CertificateReply,
        timeoutMs: TIMEOUT_MS,
      });
      await writeIdentity(files, { ...reply, key });
      process.stdout.write(`${files.cert}\n`);
    });
}

function listCommand(): Command {
  return new Command('list')
    .description('Certificates that were issued and have not expired, revoked ones too.')
    .option('--json', 'print a JSON array')
    .option(...MASTER_SOCKET_OPTION)
    .action(async (options: { json?: boolean; socket?: string }) => {
      using client = openMasterClient(options);
      const found = await client.request({
        method: 'GET',
        path: '/v1/certificates',
        reply: z.array(CertificateInfo),
        timeoutMs: TIMEOUT_MS,
      });
      process.stdout.write(
        options.json ? `${JSON.stringify(found)}\n` : formatCertificates(found, Date.now()),
      );
    });
}

export function formatCertificates(certificates: readonly CertificateInfo[], nowMs: number): string {
  const columns = ['NAME', 'ROLE', 'UNTIL', 'LEFT', 'STATE', 'SERIAL'].map((title) => ({ title }));
  const rows = certificates.map(({ name, role, notAfter, revokedAt, serial }) => [
    ...[
      name,
      role,
      notAfter.slice(0, 10),
      formatLeft(Date.parse(notAfter) - nowMs),
      revokedAt === null ? 'valid' : `revoked ${revokedAt.slice(0, 10)}`,
      serial,
    ],
  ]);
  return `${formatTable(columns, rows).join('\n')}\n`;
}

/** Days, and hours when there are few. */
function formatLeft(ms: number): string {
  if (ms <= 0) return 'expired';
  const hours = Math.floor(ms / 3_600_000);
  return hours < 72 ? `${hours} h` : `${Math.floor(hours / 24)} d`;
}

export function certCommand(): Command {
  return new Command('cert')
    .summary('certificates for people and programs (on the master host)')
    .addCommand(issueCommand())
    .addCommand(listCommand());
}

export function revokeCommand(): Command {
  return new Command('revoke')
    .summary('revoke the certificates of a host or a person (on the master host)')
    .description(
      'Revokes every certificate with this name, except that of sfmd, and its open tokens. sfmd refuses them at once, every\n' +
        'sfld within seconds; connections that are open are cut. Then a host is down, and its clones are lost.',
    )
    .argument('<name>', "a host, or the name of 'cert issue'")
    .addOption(new Option('--role <role>', 'only those of this role').choices([...ROLES]))
    .option(...MASTER_SOCKET_OPTION)
    .action(async (name: string, options: { role?: Role; socket?: string }) => {
      using client = openMasterClient(options);
      const revoked = await client.request({
        method: 'POST',
        path: '/v1/certificates/revoke',
        body: { name, ...(options.role ? { role: options.role } : {}) },
        reply: z.array(CertificateInfo),
        timeoutMs: TIMEOUT_MS,
      });
      for (const { role, serial } of revoked) process.stdout.write(`revoked: ${name}, ${role}, ${serial}\n`);
    });
}
