// snowflock-startup (manual, sections 2 and 4): starts sfmd here and sfld on every host of sfmd's configuration, over ssh, and
// waits until all are up.

import { execFile } from 'node:child_process';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { Command } from 'commander';
import { Lab } from '@snowflock/lab';
import {
  configureSfmd,
  ControlClient,
  readConfigText,
  SnowflockError,
  SystemState,
  toSnowflockError,
} from '@snowflock/protocol';
import { parseCount } from './commands/arguments.ts';
import { ExitStatus, EXIT_FAILURE } from './failure.ts';
import { formatTable } from './table.ts';

/** sfld is ready within seconds; measuring the accelerator of a loaded host takes longer. */
const START_TIMEOUT_MS = 120_000;
const STATE_TIMEOUT_MS = 5000;
const POLL_MS = 250;
/** ssh processes at a time. */
const PARALLEL = 32;
const VIA = 'ssh -o BatchMode=yes -o ConnectTimeout=10 -o ServerAliveInterval=5 {host}';
const SFMD = join(import.meta.dirname, '../../../bin/sfmd');

interface StartupOptions {
  readonly config: string;
  readonly via: string;
  readonly remote: string;
  readonly wait: number;
  readonly lab?: string | true;
}

interface Started {
  readonly host: string;
  /** Null: it was started, or ran already. */
  readonly problem: string | null;
}

export function startupProgram(): Command {
  return new Command('snowflock-startup')
    .summary('start the daemons of all hosts')
    .description(
      'Starts sfmd on this host, and sfld on each host in cluster_hosts of its configuration; waits until sfmd sees them all.\n' +
        'ssh must get to every host without a password. What runs already is left alone. Exit status 1 when a host is not up.',
    )
    .option('--config <file>', "sfmd's configuration", '/etc/snowflock/sfmd.cfg')
    .option('--via <command>', 'what runs a command on {host}; words are split at spaces', VIA)
    .option('--remote <command>', "what is run there, as 'systemctl start sfld'", 'sfld start')
    .option('--wait <seconds>', 'for all hosts to be up', parseCount, 60)
    .option('--lab [name]', 'start what does not run in this lab, into each of its hosts, instead')
    .action(async (options: StartupOptions) => {
      const failed = options.lab === undefined ? await startRack(options) : await startLab(options);
      if (failed) throw new ExitStatus(EXIT_FAILURE);
    });
}

async function startRack(options: StartupOptions): Promise<boolean> {
  const { config: fileName, via, remote, wait } = options;
  const { config } = configureSfmd({ fileName, text: readConfigText(fileName), env: process.env });
  const hosts = config.clusterHosts.map(({ host }) => host);
  const sfmd = await runOnce([SFMD, 'start', '--config', fileName]);
  if (sfmd !== null) throw new SnowflockError('unavailable', `sfmd does not start here: ${sfmd}`);
  const started = await inParallel(hosts, async (host): Promise<Started> => {
    const words = `${via} ${remote}`.split(' ').filter((word) => word !== '');
    return { host, problem: await runOnce(words.map((word) => word.replaceAll('{host}', host))) };
  });
  using client = new ControlClient({ socketPath: join(config.runDir, 'sfmd.sock') });
  return report(started, await waitUntilUp(client, '/v1/state', { hosts, waitMs: wait * 1000 }));
}

async function startLab({ lab: name, wait }: StartupOptions): Promise<boolean> {
  const lab = await Lab.find(name === true ? undefined : name, { broken: true });
  if (!lab)
    throw new SnowflockError('bad-request', "there is no such lab; 'snowflock lab up' starts one, all of it");
  if (lab.daemonPid(1, 'sfmd') === undefined) await lab.startDaemon(1, 'sfmd');
  const started = await Promise.all(
    lab.hosts.map(async ({ k, name: host }): Promise<Started> => {
      try {
        if (lab.daemonPid(k, 'sfld') === undefined) await lab.startDaemon(k, 'sfld');
        return { host, problem: null };
      } catch (error) {
        return { host, problem: toSnowflockError(error).message };
      }
    }),
  );
  const hosts = lab.hosts.map(({ name: host }) => host);
  const up = await waitUntilUp(lab.client(1), '/v1/master/state', { hosts, waitMs: wait * 1000 });
  for (const { k } of lab.hosts) lab.client(k).close();
  return report(started, up);
}

/** Null when it went well, or when the daemon runs already; else what it said. */
function runOnce(argv: readonly string[]): Promise<string | null> {
  const [file = '', ...args] = argv;
  return new Promise((resolve) => {
    const child = execFile(
      file,
      args,
      { timeout: START_TIMEOUT_MS, encoding: 'utf8' },
      (error, _stdout, stderr) => {
        if (!error || /is running already/.test(stderr)) return resolve(null);
        const said = stderr.trim().split('\n').at(-1);
        const why = error.killed === true ? `no end in ${START_TIMEOUT_MS / 1000} s` : said || error.message;
        resolve(`${argv.join(' ')}: ${why}`);
      },
    );
    child.stdin?.end();
  });
}

async function inParallel<T, R>(items: readonly T[], work: (item: T) => Promise<R>): Promise<R[]> {
  const results: R[] = [];
  let next = 0;
  const worker = async (): Promise<void> => {
    for (let index = next++; index < items.length; index = next++)
      results[index] = await work(items[index] as T);
  };
  await Promise.all(Array.from({ length: Math.min(PARALLEL, items.length) }, worker));
  return results;
}

/** The hosts that are up when all are, or at the deadline. */
async function waitUntilUp(
  client: ControlClient,
  path: string,
  { hosts, waitMs }: { hosts: readonly string[]; waitMs: number },
): Promise<Set<string>> {
  const deadline = performance.now() + waitMs;
  for (;;) {
    const request = { method: 'GET', path, reply: SystemState, timeoutMs: STATE_TIMEOUT_MS } as const;
    const up = await client.request(request).then(
      (state) => new Set(state.hosts.filter((host) => host.up).map(({ host }) => host)),
      () => new Set<string>(), // it may be starting
    );
    if (hosts.every((host) => up.has(host)) || performance.now() > deadline) return up;
    await sleep(POLL_MS);
  }
}

/** Answers whether any host is not up. */
function report(started: readonly Started[], up: ReadonlySet<string>): boolean {
  const rows = started.map(({ host, problem }) => [
    host,
    up.has(host) ? 'up' : 'DOWN',
    problem ??
      (up.has(host) ? '' : 'sfld runs there but sfmd has not heard of it: sfld status, and its log, say why'),
  ]);
  const columns = ['HOST', 'STATE', 'WHAT HAPPENED'].map((title) => ({ title }));
  process.stdout.write(`${formatTable(columns, rows).join('\n')}\n`);
  return started.some(({ host }) => !up.has(host));
}
