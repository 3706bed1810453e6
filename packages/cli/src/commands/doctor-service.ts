// Is the service fit: configuration and certificates of this host's daemons, and through its sfld, sfmd, the clocks and every
// pair of hosts. Where nothing is configured and nothing runs, there is nothing to check.

import { createPrivateKey, X509Certificate } from 'node:crypto';
import { existsSync, readFileSync, statSync } from 'node:fs';
import { isIP } from 'node:net';
import { join } from 'node:path';
import { renewalWindow } from '@snowflock/authority';
import {
  readSfldConfig,
  readSfmdConfig,
  ReachReport,
  toSnowflockError,
  type ReachPair,
  type TlsPaths,
} from '@snowflock/protocol';
import { openClient } from '../sfld-socket.ts';
import type { CheckResult } from './doctor-checks.ts';

export const CONFIG_DIR = '/etc/snowflock';
/** All hosts, each within 20 s. */
const REACH_TIMEOUT_MS = 60_000;
const DAY_MS = 86_400_000;
/** Nothing depends on the clocks agreeing; logs are harder to read when they don't. */
const CLOCK_REMARK_MS = 1000;

export async function checkService(options: {
  readonly configDir: string;
  readonly socket?: string;
}): Promise<CheckResult[]> {
  const results = [
    ...checkDaemon('sfld', join(options.configDir, 'sfld.cfg'), readSfldConfig),
    ...checkDaemon('sfmd', join(options.configDir, 'sfmd.cfg'), readSfmdConfig),
  ];
  return [...results, ...(await checkReach(options, { configured: results.length > 0 }))];
}

function checkDaemon(
  name: string,
  file: string,
  read: (file: string) => TlsPaths & { readonly hostname?: string },
): CheckResult[] {
  if (!existsSync(file)) return [];
  let config: ReturnType<typeof read>;
  try {
    config = read(file);
  } catch (error) {
    const found = toSnowflockError(error).message;
    return [
      {
        name: `${name}.cfg`,
        status: 'fail',
        found,
        advice: 'correct it; docs/configuration.md has every setting',
      },
    ];
  }
  return [
    { name: `${name}.cfg`, status: 'ok', found: file, advice: '' },
    { name: `${name} cert`, ...checkCertificate(config, config.hostname ?? null, Date.now()) },
  ];
}

/** `host`: the name that it must be for; null: any. */
export function checkCertificate(
  paths: TlsPaths,
  host: string | null,
  nowMs: number,
): Omit<CheckResult, 'name'> {
  const fail = (found: string, advice: string) => ({ status: 'fail' as const, found, advice });
  const renew = 'get a new one: snowflock enroll --renew';
  try {
    const certificate = new X509Certificate(readFileSync(paths.tlsCert));
    const authority = new X509Certificate(readFileSync(paths.tlsCa));
    const key = createPrivateKey(readFileSync(paths.tlsKey));
    if (!certificate.verify(authority.publicKey))
      return fail(
        `${paths.tlsCert} was not issued by ${paths.tlsCa}`,
        'enroll this host with the cluster that it belongs to',
      );
    if (!certificate.checkPrivateKey(key))
      return fail(
        `${paths.tlsKey} is not the key of ${paths.tlsCert}`,
        'put the two files of one enrolment there',
      );
    const names = certificate.subjectAltName ?? certificate.subject;
    if (host !== null && !(isIP(host) ? certificate.checkIP(host) : certificate.checkHost(host)))
      return fail(
        `${paths.tlsCert} is for ${names}, not for '${host}'`,
        `set hostname to its name, or ${renew}`,
      );
    const mode = statSync(paths.tlsKey).mode & 0o777;
    if ((mode & 0o077) !== 0)
      return fail(
        `${paths.tlsKey} can be read by others than root (mode ${mode.toString(8)})`,
        `chmod 600 ${paths.tlsKey}`,
      );
    const from = Date.parse(certificate.validFrom);
    const days = Math.floor((Date.parse(certificate.validTo) - nowMs) / DAY_MS);
    const { untilMs, expiresMs } = renewalWindow(certificate);
    if (nowMs < from)
      return fail(
        `${paths.tlsCert} is valid from ${certificate.validFrom} on`,
        'is the clock of this host right?',
      );
    if (days < 0) return fail(`${paths.tlsCert} expired at ${certificate.validTo}`, renew);
    const found = `${names}, ${days} days left`;
    // Half of what was left when its daemon was to renew it: time enough for sfmd to have been away for a while.
    if (nowMs < (untilMs + expiresMs) / 2) return { status: 'ok', found, advice: '' };
    const advice = `its daemon renews it while it runs, and has not; its log says why (or: ${renew})`;
    return { status: 'warn', found, advice };
  } catch (error) {
    return fail(
      error instanceof Error ? error.message : String(error),
      'snowflock init makes the authority, snowflock enroll a certificate',
    );
  }
}

async function checkReach(
  options: { readonly socket?: string },
  { configured }: { configured: boolean },
): Promise<CheckResult[]> {
  let report: ReachReport;
  try {
    using client = openClient(options);
    report = await client.request({
      method: 'GET',
      path: '/v1/reach?all=1',
      reply: ReachReport,
      timeoutMs: REACH_TIMEOUT_MS,
    });
  } catch (error) {
    const found = toSnowflockError(error).message;
    return configured ? [{ name: 'sfld', status: 'fail', found, advice: 'start it: sfld start' }] : [];
  }
  return reachResults(report);
}

const ADVICE: Readonly<Record<ReachPair['part'], string>> = {
  sfmd: 'is sfmd started, and does the network between them let its TCP port (master_port, 0xF10C) through?',
  sfld: 'is sfld started there, and does the network let its TCP port (local_listen_port, 0xC01F) through?',
  pages: 'memservers take any free port: let TCP from the other hosts through to all ports above 1023',
  vxlan:
    'the networks of clusters are VXLAN: let UDP port 4789 through, both ways (and the ICMP answer of a closed port)',
};

/** One line for what is well, one for each pair that is not. */
export function reachResults({ pairs, clocks }: ReachReport): CheckResult[] {
  const bad = pairs.filter(({ state }) => state === 'failed');
  const untried = pairs.filter(({ state }) => state === 'untried');
  const good = pairs.length - bad.length - untried.length;
  const rest =
    untried.length === 0 ? '' : `, ${untried.length} could not be tried (${untried[0]?.reason ?? ''})`;
  const results: CheckResult[] = [
    {
      name: 'hosts',
      status: 'ok',
      found: `${good} of ${pairs.length} ways between hosts and daemons work${rest}`,
      advice: '',
    },
    ...bad.map(({ from, to, part, reason }): CheckResult => {
      const name = part === to ? `${from} → ${to}` : `${from} → ${to} ${part}`;
      return { name, status: 'fail', found: reason ?? 'no answer', advice: ADVICE[part] };
    }),
  ];
  const worst = clocks.reduce((most, { aheadMs }) => Math.max(most, Math.abs(aheadMs)), 0);
  const off = clocks.filter(({ aheadMs }) => Math.abs(aheadMs) >= CLOCK_REMARK_MS);
  const said = off.map(
    ({ host, aheadMs }) =>
      `${host} ${Math.round(Math.abs(aheadMs) / 1000)} s ${aheadMs > 0 ? 'ahead' : 'behind'}`,
  );
  if (clocks.length > 0)
    results.push(
      off.length === 0
        ? {
            name: 'clocks',
            status: 'ok',
            found: `they differ by ${Math.round(worst)} ms at most`,
            advice: '',
          }
        : {
            ...{ name: 'clocks', status: 'warn', found: said.join(', ') },
            advice:
              'SnowFlock works all the same; run an NTP client on every host, so that logs can be compared',
          },
    );
  return results;
}
