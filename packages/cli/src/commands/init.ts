// snowflock init: the certificate authority of a new system, sfmd's certificate, this host's, and an operator's.

import { Command, Option } from 'commander';
import { existsSync } from 'node:fs';
import { mkdir } from 'node:fs/promises';
import { hostname, userInfo } from 'node:os';
import { isIP } from 'node:net';
import { join } from 'node:path';
import { Authority, CERTIFICATE_DAYS, identityFiles, writeIdentity } from '@snowflock/authority';
import { resolveHostAddress, SnowflockError, type Role } from '@snowflock/protocol';

export const TLS_DIR = '/etc/snowflock/tls';
export const AUTHORITY_DIR = '/var/lib/snowflock/authority';

interface InitOptions {
  readonly name: string;
  readonly hostname: string;
  readonly also: string[];
  readonly tlsDir: string;
  readonly authorityDir: string;
}

export const collect = (value: string, earlier: string[]): string[] => [...earlier, value];

export function initCommand(): Command {
  return new Command('init')
    .summary('make the certificate authority of a new system (on the master host)')
    .description(
      'Makes, on the master host and once for a system: the certificate authority, the certificate of sfmd, that of this\n' +
        "host's sfld, and one for the operator who runs this. The other hosts enrol: snowflock enroll --issue HOST.",
    )
    .option('--name <name>', 'of the authority, for people', 'snowflock')
    .addOption(
      new Option('--hostname <host>', 'this host, as in cluster_hosts and master_host').default(
        hostname(),
        "this machine's name",
      ),
    )
    .option(
      '--also <name>',
      'a further name or address that others reach this host by; may be repeated',
      collect,
      [],
    )
    .option('--tls-dir <dir>', 'where the daemons look for certificates', TLS_DIR)
    .option('--authority-dir <dir>', "sfmd's authority_dir", AUTHORITY_DIR)
    .action(async (options: InitOptions) => {
      for (const line of await init(options)) process.stdout.write(`${line}\n`);
    });
}

async function init({ name, hostname, also, tlsDir, authorityDir }: InitOptions): Promise<string[]> {
  const wanted: readonly [string, Role][] = [
    ['sfmd', 'master'],
    ['host', 'host'],
    ['operator', 'operator'],
  ];
  for (const [file] of wanted) {
    const { cert, key } = identityFiles(tlsDir, file);
    for (const path of [cert, key])
      if (existsSync(path))
        throw new SnowflockError(
          'bad-request',
          `${path} is there already; it is not replaced: move ${tlsDir} away first`,
        );
  }
  const names = new Set([hostname, ...also]);
  // Others may be configured with the address.
  if (isIP(hostname) === 0)
    await resolveHostAddress(hostname).then(
      (address) => names.add(address),
      () => undefined,
    );
  const authority = await Authority.create(authorityDir, { name });
  await mkdir(tlsDir, { recursive: true, mode: 0o700 });
  for (const [file, role] of wanted) {
    const isDaemon = role !== 'operator';
    const subject = {
      role,
      name: isDaemon ? hostname : userInfo().username,
      altNames: isDaemon ? [...names] : [],
    };
    await writeIdentity(identityFiles(tlsDir, file), await authority.newIdentity(subject));
  }
  return [
    `certificate authority '${name}': ${authorityDir} (keep a copy of ${join(authorityDir, 'ca.key')} where nobody else reads it)`,
    `certificates of sfmd, of this host and of operator ${userInfo().username}: ${tlsDir}, good for ${CERTIFICATE_DAYS} days`,
    `sfmd and this host are known as ${[...names].join(', ')}`,
    `next: sfmd start; then for each other host: snowflock enroll --issue HOST`,
  ];
}
