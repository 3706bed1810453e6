// The three configuration files (manual sections 4, 11 and 12; docs/configuration.md), as checked objects.

import { lookup } from 'node:dns/promises';
import { readFileSync } from 'node:fs';
import { isIP } from 'node:net';
import { z } from 'zod';
import { readConfig, readConfigText, resolveFrom, suggestion } from './config-reader.ts';
import type { TlsIdentity } from './control-client-errors.ts';
import { MEMORY_MIB_MAX, MEMORY_MIB_MIN, VCPUS_MAX, type VmShape } from './control.ts';
import { SnowflockError } from './errors.ts';

export { CONFIG_FILE_MAX_BYTES, type ConfigDict, type ConfigValue } from './config-lexer.ts';
export { parseConfigText, type ConfigEntry } from './config-parser.ts';

export const MASTER_PORT_DEFAULT = 0xf10c;
export const LOCAL_PORT_DEFAULT = 0xc01f;
/** Of cluster_hosts; bounds every list and fan-out over hosts. */
export const HOSTS_MAX = 4096;
const HOST_CPUS_MAX = 4096;
const HOST_RAM_MIN_BYTES = MEMORY_MIB_MIN << 20;
const RESOLVE_TIMEOUT_MS = 10_000;

const text = (what: string) => z.string(`must be a string: ${what}`).min(1, `must not be empty: ${what}`);
const integer = (what: string, min: number, max: number) =>
  z
    .int(`must be an integer: ${what}`)
    .min(min, `must be at least ${min}: ${what}`)
    .max(max, `must be at most ${max}: ${what}`);
const oneOf = <const T extends readonly string[]>(...values: T) =>
  z.enum(values, `must be one of ${values.map((value) => `'${value}'`).join(', ')}`);
const hostName = text('a host name or address').regex(
  /^[A-Za-z0-9][A-Za-z0-9.:-]{0,252}$/,
  'must be a host name or address (letters, digits, . : -)',
);
const port = integer('a TCP port', 1, 65535);
const path = text('a path').refine((value) => !value.includes('\0'), 'must be a path');

const COMMON = {
  state_dir: path.default('/var/lib/snowflock'),
  run_dir: path.default('/run/snowflock'),
  tls_ca: path.default('/etc/snowflock/tls/ca.crt'),
  tls_cert: path.default('/etc/snowflock/tls/host.crt'),
  tls_key: path.default('/etc/snowflock/tls/host.key'),
};

/** Files of this daemon's certificate; absolute paths. */
export interface TlsPaths {
  readonly tlsCa: string;
  readonly tlsCert: string;
  readonly tlsKey: string;
}

interface CommonConfig extends TlsPaths {
  /** What must survive a restart of the machine. */
  readonly stateDir: string;
  /** Sockets and pid files. */
  readonly runDir: string;
}

function common(fileName: string, read: Record<keyof typeof COMMON, string>): CommonConfig {
  const at = (value: string): string => resolveFrom(fileName, value);
  return {
    stateDir: at(read.state_dir),
    runDir: at(read.run_dir),
    tlsCa: at(read.tls_ca),
    tlsCert: at(read.tls_cert),
    tlsKey: at(read.tls_key),
  };
}

// ---- sfseed (manual section 4) ------------------------------------------------------------------------------------

const IMAGE_NAME = /^[A-Za-z0-9][A-Za-z0-9._+-]{0,127}$/;

const SEED = {
  disk_image: path.refine(
    (value) => value.includes('/') || IMAGE_NAME.test(value),
    "must be a path (with a '/') or the name of a built image (letters, digits, . _ + -)",
  ),
  vcpus: integer('virtual processors of a VM', 1, VCPUS_MAX),
  memory: integer('MiB of memory of a VM', MEMORY_MIB_MIN, MEMORY_MIB_MAX),
};

export function parseSeedConfig(source: string, fileName: string): VmShape {
  const read = readConfig(source, fileName, SEED);
  const diskImage = read.disk_image.includes('/') ? resolveFrom(fileName, read.disk_image) : read.disk_image;
  return { diskImage, vcpus: read.vcpus, memoryMib: read.memory };
}

export function readSeedConfig(fileName: string): VmShape {
  return parseSeedConfig(readConfigText(fileName), fileName);
}

// ---- sfld (manual section 11) -------------------------------------------------------------------------------------

export interface SfldConfig extends CommonConfig {
  readonly hostname: string;
  readonly masterHost: string;
  readonly masterPort: number;
  readonly localListenPort: number;
  readonly accel: 'auto' | 'kvm' | 'tcg';
  /** Where other hosts reach this one; null: what hostname resolves to (resolveHostAddress). */
  readonly address: string | null;
}

const SFLD = {
  hostname: hostName,
  master_host: hostName,
  master_port: port.default(MASTER_PORT_DEFAULT),
  local_listen_port: port.default(LOCAL_PORT_DEFAULT),
  accel: oneOf('auto', 'kvm', 'tcg').default('auto'),
  address: z
    .string('must be a string: an IP address')
    .refine((value) => isIP(value) !== 0, 'must be an IP address')
    .optional(),
  ...COMMON,
};

export function parseSfldConfig(source: string, fileName: string): SfldConfig {
  const read = readConfig(source, fileName, SFLD);
  return {
    hostname: read.hostname,
    masterHost: read.master_host,
    masterPort: read.master_port,
    localListenPort: read.local_listen_port,
    accel: read.accel,
    address: read.address ?? (isIP(read.hostname) === 0 ? null : read.hostname),
    ...common(fileName, read),
  };
}

export function readSfldConfig(fileName: string): SfldConfig {
  return parseSfldConfig(readConfigText(fileName), fileName);
}

// ---- sfmd (manual section 12) -------------------------------------------------------------------------------------

export interface ClusterHost {
  /** Canonical name, also the unicast name. */
  readonly host: string;
  /** Name for multicast traffic; the same as host unless a pair was given. */
  readonly multicastHost: string;
  readonly cpus: number;
  readonly ramBytes: number;
}

export interface SfmdConfig extends CommonConfig {
  /** First clusterid to hand out. */
  readonly clusterid: number;
  readonly masterListenPort: number;
  /** `address`: where to listen; 0.0.0.0: everywhere. */
  readonly listenAddress: string;
  readonly clusterHosts: readonly ClusterHost[];
  readonly networkMode: 'multicast' | 'unicast';
  /** Addresses, subnets or DNS names. */
  readonly networkWhitelist: readonly string[];
  /** Mbit/s; null: none. */
  readonly bandwidthCap: number | null;
}

const HOST_KEYS = ['host', 'cpus', 'RAM'];
const hostEntry = z
  .record(z.string(), z.unknown(), "must be a dictionary with 'host', 'cpus' and 'RAM'")
  .superRefine((dict, context) => {
    for (const key of Object.keys(dict))
      if (!HOST_KEYS.includes(key))
        context.addIssue({
          code: 'custom',
          path: [key],
          message: `unknown key${suggestion(key, HOST_KEYS)}`,
        });
    for (const key of HOST_KEYS)
      if (!Object.hasOwn(dict, key))
        context.addIssue({ code: 'custom', message: `'${key}' is missing in this dictionary` });
  })
  .pipe(
    z.object({
      host: z.union(
        [hostName, z.tuple([hostName, hostName])],
        "must be one host name, or a list ['unicast', 'multicast']",
      ),
      cpus: integer('processors for VMs', 1, HOST_CPUS_MAX),
      RAM: integer('bytes for VMs, for example 2*(1<<30)', HOST_RAM_MIN_BYTES, Number.MAX_SAFE_INTEGER),
    }),
  );

const whitelistEntry = text('an address, a subnet or a DNS name').refine(
  isWhitelistEntry,
  'must be an address, a subnet such as 10.1.0.0/16, or a DNS name',
);

function isWhitelistEntry(value: string): boolean {
  const [address = '', prefix, ...rest] = value.split('/');
  if (prefix === undefined)
    return (
      isIP(value) !== 0 ||
      /^(?=.{1,253}$)[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9-]+)*\.?$/.test(value)
    );
  return (
    rest.length === 0 &&
    /^\d{1,3}$/.test(prefix) &&
    Number(prefix) <= (isIP(address) === 6 ? 128 : 32) &&
    isIP(address) !== 0
  );
}

const SFMD = {
  clusterid: integer('the first clusterid', 0, 0xfffffe).default(0),
  master_listen_port: port.default(MASTER_PORT_DEFAULT),
  hostname: hostName.optional(),
  address: z
    .string('must be a string: an IP address')
    .refine((value) => isIP(value) !== 0, 'must be an IP address')
    .default('0.0.0.0'),
  cluster_hosts: z
    .array(hostEntry, 'must be a list of dictionaries')
    .min(1, 'must name at least one host')
    .max(HOSTS_MAX, `must name at most ${HOSTS_MAX} hosts`)
    .superRefine((hosts, context) => {
      const seen = new Set<string>();
      for (const [index, { host }] of hosts.entries()) {
        const name = typeof host === 'string' ? host : host[0];
        if (seen.has(name))
          context.addIssue({ code: 'custom', path: [index, 'host'], message: `'${name}' is listed twice` });
        seen.add(name);
      }
    }),
  network_mode: oneOf('multicast', 'unicast').default('multicast'),
  network_whitelist: z.array(whitelistEntry, 'must be a list of strings').default([]),
  bandwidth_cap: integer('Mbit/s', 1, 1_000_000).nullable().default(null),
  ...COMMON,
};

export function parseSfmdConfig(source: string, fileName: string): SfmdConfig {
  const read = readConfig(source, fileName, SFMD);
  return {
    clusterid: read.clusterid,
    masterListenPort: read.master_listen_port,
    listenAddress: read.address,
    clusterHosts: read.cluster_hosts.map(({ host, cpus, RAM }) => {
      const [unicast, multicast] = typeof host === 'string' ? [host, host] : host;
      return { host: unicast, multicastHost: multicast, cpus, ramBytes: RAM };
    }),
    networkMode: read.network_mode,
    networkWhitelist: read.network_whitelist,
    bandwidthCap: read.bandwidth_cap,
    ...common(fileName, read),
  };
}

export function readSfmdConfig(fileName: string): SfmdConfig {
  return parseSfmdConfig(readConfigText(fileName), fileName);
}

// ---- what the readers leave open ----------------------------------------------------------------------------------

/** Reads the three PEM files. */
export function readTlsIdentity(paths: TlsPaths): TlsIdentity {
  const read = (name: string, file: string): Buffer => {
    try {
      return readFileSync(file);
    } catch (error) {
      const code = (error as NodeJS.ErrnoException).code ?? String(error);
      throw new SnowflockError(
        'bad-config',
        `cannot read ${file} (${name}): ${code}; was this host enrolled?`,
        { cause: error },
      );
    }
  };
  return {
    ca: read('tls_ca', paths.tlsCa),
    cert: read('tls_cert', paths.tlsCert),
    key: read('tls_key', paths.tlsKey),
  };
}

/** The IP address of a host name; an address is its own. */
export async function resolveHostAddress(host: string): Promise<string> {
  if (isIP(host) !== 0) return host;
  const late = AbortSignal.timeout(RESOLVE_TIMEOUT_MS);
  const expired = new Promise<never>((_resolve, reject) => {
    late.addEventListener('abort', () => reject(new Error(`no answer in ${RESOLVE_TIMEOUT_MS} ms`)), {
      once: true,
    });
  });
  try {
    return (await Promise.race([lookup(host, { family: 0, order: 'ipv4first' }), expired])).address;
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    throw new SnowflockError(
      'bad-config',
      `host name '${host}' does not resolve: ${reason}; give an address, or add it to /etc/hosts`,
      { cause: error },
    );
  }
}
