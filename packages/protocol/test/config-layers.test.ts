import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import {
  configureSfld,
  configureSfmd,
  formatEffective,
  parseSfmdConfig,
  SFLD_OPTIONS,
  SFMD_OPTIONS,
  SnowflockError,
  variableOf,
} from '../src/index.ts';

const FILE = "hostname = 'h1'\nmaster_host = 'm'\nmaster_port = 1000\nstate_dir = 'state'\n";
const HOSTS = "cluster_hosts = [{'host': 'a', 'cpus': 2, 'RAM': 1<<30}]\n";
const fileName = '/etc/snowflock/sfld.cfg';

function messageOf(work: () => unknown): string {
  try {
    work();
  } catch (error) {
    expect(error).toBeInstanceOf(SnowflockError);
    return (error as SnowflockError).message;
  }
  throw new Error('no error');
}

describe('flags before environment before file before default', () => {
  it('for each option by itself, with the place that each value comes from', () => {
    const env = {
      SNOWFLOCK_MASTER_PORT: '0xBEEF',
      SNOWFLOCK_ACCEL: 'tcg',
      SNOWFLOCK_RUN_DIR: 'run',
      OTHER: '1',
    };
    const flags = { master_port: '2*1000', max_requests: undefined };
    const { config, effective } = configureSfld({ fileName, text: FILE, env, flags });
    expect(config).toMatchObject({ masterPort: 2000, accel: 'tcg', hostname: 'h1', localListenPort: 0xc01f });
    // In the file relative to the file, elsewhere to where one is.
    expect([config.stateDir, config.runDir]).toEqual(['/etc/snowflock/state', join(process.cwd(), 'run')]);
    const origins = Object.fromEntries(effective.map(({ name, origin }) => [name, origin]));
    expect(origins).toMatchObject({
      master_port: '--master-port',
      accel: 'SNOWFLOCK_ACCEL',
      hostname: `${fileName}:1`,
      local_listen_port: 'default',
    });
    expect(effective.map(({ name }) => name)).toEqual(SFLD_OPTIONS);
  });

  it('takes strings with and without quotes, and all else as in the file', () => {
    const of = (value: string) =>
      configureSfld({ fileName, text: FILE, env: { SNOWFLOCK_MASTER_HOST: value } }).config.masterHost;
    expect(['host9', '10.0.0.9', '123', "'host9'", '"host9"', 'fe80::1'].map(of)).toEqual([
      ...['host9', '10.0.0.9', '123', 'host9', 'host9', 'fe80::1'],
    ]);
    const sfmd = (flags: Record<string, string>) =>
      configureSfmd({ fileName: 'f', text: HOSTS, flags }).config;
    expect(sfmd({ bandwidth_cap: 'None' }).bandwidthCap).toBeNull();
    expect(sfmd({ socket_group: 'None' }).socketGroup).toBeNull();
    expect(sfmd({ network_whitelist: "['a.example', '10.0.0.0/8']" }).networkWhitelist).toHaveLength(2);
    expect(
      configureSfmd({ fileName: 'f', text: null, env: { SNOWFLOCK_CLUSTER_HOSTS: HOSTS.slice(16) } }).config
        .clusterHosts,
    ).toHaveLength(1);
  });

  it.each([
    [{ SNOWFLOCK_MASTER_PORT: 'abc' }, 'SNOWFLOCK_MASTER_PORT: master_port: must be an integer'],
    [{ SNOWFLOCK_MASTER_PORT: '70000' }, 'SNOWFLOCK_MASTER_PORT: master_port: must be at most 65535'],
    [{ SNOWFLOCK_MASTER_PORT: '1\nhostname = 2' }, 'SNOWFLOCK_MASTER_PORT: unexpected'],
    [{ SNOWFLOCK_MASTER_PORT: '' }, 'SNOWFLOCK_MASTER_PORT: '],
    [{ SNOWFLOCK_ACCEL: 'xen' }, "SNOWFLOCK_ACCEL: accel: must be one of 'auto', 'kvm', 'tcg'"],
    [{ SNOWFLOCK_HOSTNAME: 'a b' }, 'SNOWFLOCK_HOSTNAME: '],
    [{ SNOWFLOCK_HOSTNAME: '__import__("os")' }, 'SNOWFLOCK_HOSTNAME: '],
    [{ SNOWFLOCK_MASTER_PORT: 'x'.repeat(2 << 20) }, 'SNOWFLOCK_MASTER_PORT: has more than'],
  ])('names where a wrong value comes from: %j', (env, message) => {
    expect(messageOf(() => configureSfld({ fileName, text: FILE, env })).slice(0, 400)).toContain(message);
  });

  it('says what is missing, and that there is no file', () => {
    expect(messageOf(() => configureSfld({ fileName, text: null }))).toBe(
      `${fileName}: there is no such file, and missing 'hostname', 'master_host'; see docs/configuration.md`,
    );
  });
});

it('what --check prints is a file that says the same', () => {
  const { config, effective } = configureSfmd({
    fileName: '/etc/f',
    text: `${HOSTS}hostname = 'a'\nnetwork_whitelist = ['x.example']\nbandwidth_cap = 5\n`,
    flags: { state_dir: "/tmp/it's \\ here" },
  });
  const printed = formatEffective(effective);
  expect(parseSfmdConfig(printed, '/elsewhere/f')).toEqual(config);
  expect(printed).toContain("hostname = 'a'  # /etc/f:2");
  expect(effective.map(({ name }) => name)).toEqual(SFMD_OPTIONS);
});

it('options of both daemons have a variable each', () => {
  const variables = [...new Set([...SFLD_OPTIONS, ...SFMD_OPTIONS])].map(variableOf);
  expect(new Set(variables).size).toBe(variables.length);
  // Variables with another meaning (docs/commands.md).
  for (const taken of ['SOCKET', 'LAB_DIR', 'DEBUG', 'FORKSHIM', 'IMAGES', 'REQUIRE_VM', 'SKIP_PACKAGES'])
    expect(variables).not.toContain(`SNOWFLOCK_${taken}`);
});
