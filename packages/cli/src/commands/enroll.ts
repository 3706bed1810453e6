// snowflock enroll: --issue on the master host, --token on the new host, --renew on either.

import { Command } from 'commander';
import { existsSync, readFileSync } from 'node:fs';
import { hostname } from 'node:os';
import { dirname, resolve } from 'node:path';
import { enroll, identityFiles, renew, type IdentityFiles } from '@snowflock/authority';
import {
  configureSfld,
  ENROLL_PORT_DEFAULT,
  MASTER_PORT_DEFAULT,
  readConfigText,
  SnowflockError,
  TOKEN_MINUTES_MAX,
  TokenReply,
  type SfldConfig,
} from '@snowflock/protocol';
import { MASTER_SOCKET_OPTION, openMasterClient } from '../sfmd-socket.ts';
import { parseCount } from './arguments.ts';
import { collect, TLS_DIR } from './init.ts';

const ISSUE_TIMEOUT_MS = 10_000;
const CONFIG = '/etc/snowflock/sfld.cfg';

interface EnrollOptions {
  readonly issue?: string;
  readonly also: string[];
  readonly minutes: number;
  readonly socket?: string;
  readonly token?: string;
  readonly renew?: boolean;
  readonly sfmd?: boolean;
  readonly master?: string;
  readonly hostname?: string;
  readonly config: string;
  readonly tlsDir?: string;
}

export function enrollCommand(): Command {
  return new Command('enroll')
    .summary('give a host its certificate')
    .description(
      'On the master host, --issue HOST prints a token: good once, for that host, for an hour.\n' +
        'On the new host, --token TOKEN --master ADDRESS gets the certificate; the key is made there and stays there.\n' +
        '--renew replaces a certificate now; the daemon takes it up within a minute, and renews it by itself in time.',
    )
    .option('--issue <host>', 'print a token for this host, named as in cluster_hosts')
    .option('--also <name>', 'a further name or address of the host; may be repeated', collect, [])
    .option('--minutes <n>', `how long the token is good (at most ${TOKEN_MINUTES_MAX})`, parseCount, 60)
    .option(...MASTER_SOCKET_OPTION)
    .option('--token <token>', "what --issue printed; '-' reads it from standard input")
    .option('--renew', "replace this host's certificate")
    .option('--sfmd', "with --renew, on the master host: sfmd's certificate instead")
    .option(
      '--master <address[:port]>',
      `the master host (default: master_host of sfld.cfg; port ${ENROLL_PORT_DEFAULT})`,
    )
    .option('--hostname <host>', 'this host, as in cluster_hosts (default: hostname of sfld.cfg)')
    .option('--config <file>', "sfld's configuration", CONFIG)
    .option('--tls-dir <dir>', `where the certificate goes (default: as sfld.cfg says, or ${TLS_DIR})`)
    .action(async (options: EnrollOptions) => {
      const actions = [options.issue, options.token, options.renew].filter((each) => each !== undefined);
      if (actions.length !== 1)
        throw new SnowflockError(
          'bad-request',
          'say one of --issue HOST, --token TOKEN and --renew (--help)',
        );
      if (options.issue !== undefined) return issueToken(options.issue, options);
      const config = sfldConfig(options.config);
      const files = filesOf(config, options);
      const certificate =
        options.token === undefined
          ? await renew({
              master: masterOf(config, options, config?.masterPort ?? MASTER_PORT_DEFAULT),
              files,
            })
          : await enroll({
              token: (options.token === '-' ? readFileSync(0, 'utf8') : options.token).trim(),
              master: masterOf(config, options, ENROLL_PORT_DEFAULT),
              host: options.hostname ?? config?.hostname ?? hostname(),
              files,
            });
      process.stdout.write(
        `${files.cert}: ${certificate.subject.replaceAll('\n', ', ')}, until ${certificate.validTo}\n`,
      );
    });
}

async function issueToken(host: string, options: EnrollOptions): Promise<void> {
  using client = openMasterClient(options);
  const { token, expiresAt, port } = await client.request({
    method: 'POST',
    path: '/v1/tokens',
    body: { host, altNames: options.also, validMinutes: options.minutes },
    reply: TokenReply,
    timeoutMs: ISSUE_TIMEOUT_MS,
  });
  // The token alone on standard output, for scripts.
  process.stdout.write(`${token}\n`);
  const at = port === ENROLL_PORT_DEFAULT ? 'MASTER' : `MASTER:${port}`;
  process.stderr.write(
    `good once, until ${expiresAt}; on ${host}: snowflock enroll --master ${at} --token TOKEN\n`,
  );
}

/** Null when there is none: then the flags must say enough. */
function sfldConfig(file: string): SfldConfig | null {
  if (file === CONFIG && !existsSync(file)) return null;
  return configureSfld({ fileName: file, text: readConfigText(file), env: process.env }).config;
}

function filesOf(config: SfldConfig | null, { tlsDir, sfmd }: EnrollOptions): IdentityFiles {
  const name = sfmd ? 'sfmd' : 'host';
  if (tlsDir !== undefined) return identityFiles(resolve(tlsDir), name);
  if (sfmd) return identityFiles(config ? dirname(config.tlsCert) : TLS_DIR, name);
  if (config) return { ca: config.tlsCa, cert: config.tlsCert, key: config.tlsKey };
  return identityFiles(TLS_DIR, 'host');
}

function masterOf(config: SfldConfig | null, { master }: EnrollOptions, port: number) {
  const text = master ?? config?.masterHost;
  if (text === undefined)
    throw new SnowflockError(
      'bad-request',
      `say where the master is: --master ADDRESS, or master_host in ${CONFIG}`,
    );
  // ADDRESS, ADDRESS:PORT, [V6]:PORT; a bare IPv6 address has several colons.
  const match = /^\[([^\]]+)\](?::(\d{1,5}))?$/.exec(text) ?? /^([^:]+):(\d{1,5})$/.exec(text);
  return { address: match?.[1] ?? text, port: Number(match?.[2] ?? port) };
}
