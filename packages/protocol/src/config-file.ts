// The options of sfseed, sfld and sfmd (manual sections 4, 11 and 12; docs/configuration.md), as checked objects.

import { isIP } from 'node:net';
import { join } from 'node:path';
import { z } from 'zod';
import { commonConfig, commonOptions, hostName, integer, oneOf, path, port, text } from './config-options.ts';
import type { CommonConfig } from './config-options.ts';
import { WHITELIST_MAX } from './network.ts';
import { readConfig, readConfigText, readLayers, resolveFrom, suggestion } from './config-reader.ts';
import type { ConfigRead, ConfigSources, EffectiveOption } from './config-reader.ts';
import { checkpointName, type SeedRequest } from './checkpoint.ts';
import {
  MEMORY_MIB_MAX,
  MEMORY_MIB_MIN,
  RESULT_BYTES_MAX,
  VCPUS_MAX,
  VMS_PER_REPORT_MAX,
} from './control.ts';

export { CONFIG_FILE_MAX_BYTES, type ConfigDict, type ConfigValue } from './config-lexer.ts';
export { parseConfigText, type ConfigEntry } from './config-parser.ts';
export { formatEffective } from './config-format.ts';
export { flagOf, readConfigText, variableOf } from './config-reader.ts';
export type { ConfigSources, EffectiveOption } from './config-reader.ts';
export { HTTP_LIMITS_DEFAULT, type HttpLimits, type TlsPaths } from './config-options.ts';
export { OLD_KEY_SUFFIX, readTlsIdentity, resolveHostAddress } from './config-machine.ts';

export const MASTER_PORT_DEFAULT = 0xf10c;
export const LOCAL_PORT_DEFAULT = 0xc01f;
export const ENROLL_PORT_DEFAULT = 0xf10d;
/** Of cluster_hosts; bounds every list and fan-out over hosts. */
export const HOSTS_MAX = 4096;
const HOST_CPUS_MAX = 4096;
const HOST_RAM_MIN_BYTES = MEMORY_MIB_MIN << 20;

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

const SEED_CHECKPOINT = { checkpoint: checkpointName };
/** A line that sets it, and not a comment. */
const NAMES_CHECKPOINT = /^[ \t]*checkpoint[ \t]*=/m;

export function parseSeedConfig(source: string, fileName: string): SeedRequest {
  // It has everything else in it, so that other keys beside it are mistakes.
  if (NAMES_CHECKPOINT.test(source)) return readConfig(source, fileName, SEED_CHECKPOINT);
  const read = readConfig(source, fileName, SEED);
  const diskImage = read.disk_image.includes('/') ? resolveFrom(fileName, read.disk_image) : read.disk_image;
  return { diskImage, vcpus: read.vcpus, memoryMib: read.memory };
}

export function readSeedConfig(fileName: string): SeedRequest {
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
  /** Of what clones exit with. */
  readonly resultLimits: { readonly cloneBytes: number; readonly ticketBytes: number };
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
  max_result_bytes: integer('bytes that a clone may exit with', 0, RESULT_BYTES_MAX).default(16 << 20),
  max_ticket_result_bytes: integer('bytes of results of one ticket', 0, 2 ** 40).default(256 << 20),
  ...commonOptions('host'),
};
export const SFLD_OPTIONS = Object.keys(SFLD);

/** A daemon's configuration, and where each value of it comes from. */
export interface Configured<C> {
  readonly config: C;
  readonly effective: readonly EffectiveOption[];
}

export function configureSfld(sources: ConfigSources): Configured<SfldConfig> {
  const layers = readLayers(sources, SFLD);
  return { config: sfldConfig(layers), effective: layers.effective };
}

export function parseSfldConfig(source: string, fileName: string): SfldConfig {
  return configureSfld({ fileName, text: source }).config;
}

function sfldConfig(layers: ConfigRead<z.infer<z.ZodObject<typeof SFLD>>>): SfldConfig {
  const read = layers.values;
  return {
    hostname: read.hostname,
    masterHost: read.master_host,
    masterPort: read.master_port,
    localListenPort: read.local_listen_port,
    accel: read.accel,
    address: read.address ?? (isIP(read.hostname) === 0 ? null : read.hostname),
    resultLimits: { cloneBytes: read.max_result_bytes, ticketBytes: read.max_ticket_result_bytes },
    ...commonConfig(layers),
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
  /** What they mean: packages/cluster/src/limits.ts. */
  readonly limits: {
    readonly vmsPerCluster: number;
    readonly vmsPerHost: number;
    readonly ticketsPerCluster: number;
    readonly clusters: number;
    readonly blockedRequests: number;
    readonly forkReservePercent: number;
    readonly hostTimeoutMs: number;
  };
  /** How pages reach the hosts of a fork; 'auto': sfmd tries multicast, and chooses for each fork (docs/distribution.md). */
  readonly networkMode: 'multicast' | 'unicast' | 'relay' | 'auto';
  /** Clones fetch all of their memory in the background, so that they need their parent's host no more. */
  readonly detachClones: boolean;
  /** What some clones needed is fetched ahead by others. */
  readonly pushPages: boolean;
  /** Over a narrow link, pages that nobody waits for yet are compressed. */
  readonly compressPages: boolean;
  /** Addresses, subnets or DNS names. */
  readonly networkWhitelist: readonly string[];
  /** Of names on the whitelist; empty: those of each host. */
  readonly networkNameservers: readonly string[];
  /** Mbit/s; null: none. */
  readonly bandwidthCap: number | null;
  /** Where hosts enrol, while a token is open. */
  readonly enrollPort: number;
  readonly authorityDir: string;
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
      for (const [index, entry] of hosts.entries()) {
        // This is run for entries with mistakes in them, too.
        const { host } = entry as Partial<typeof entry>;
        const name = Array.isArray(host) ? host[0] : host;
        if (name === undefined) continue;
        if (seen.has(name))
          context.addIssue({ code: 'custom', path: [index, 'host'], message: `'${name}' is listed twice` });
        seen.add(name);
      }
    }),
  vms_per_cluster: integer('VMs of one cluster', 1, 65534).default(4096),
  vms_per_host: integer('VMs of one host', 1, VMS_PER_REPORT_MAX).default(512),
  tickets_per_cluster: integer('tickets that one cluster holds', 1, 65534).default(1024),
  max_clusters: integer('clusters at a time', 1, 65536).default(1024),
  blocked_requests: integer('ticket requests that wait', 0, 3072).default(1024),
  fork_reserve: integer("percent of a master VM's memory held for each ticket", 0, 100).default(25),
  host_timeout: integer('seconds that a host may be silent', 4, 3600).default(8),
  network_mode: oneOf('multicast', 'unicast', 'relay', 'auto').default('unicast'),
  detach_clones: oneOf('never', 'always').default('never'),
  push_pages: oneOf('auto', 'never').default('auto'),
  compress_pages: oneOf('auto', 'never').default('auto'),
  network_whitelist: z
    .array(whitelistEntry, 'must be a list of strings')
    .max(WHITELIST_MAX, `must have at most ${WHITELIST_MAX} entries`)
    .default([]),
  network_nameservers: z
    .array(z.ipv4('must be an IPv4 address'), 'must be a list of strings')
    .max(3, 'must have at most three entries')
    .default([]),
  bandwidth_cap: integer('Mbit/s', 1, 1_000_000).nullable().default(null),
  enroll_port: port.default(ENROLL_PORT_DEFAULT),
  authority_dir: path.optional(),
  ...commonOptions('sfmd'),
};
export const SFMD_OPTIONS = Object.keys(SFMD);

export function configureSfmd(sources: ConfigSources): Configured<SfmdConfig> {
  const layers = readLayers(sources, SFMD);
  const config = sfmdConfig(layers);
  const effective = layers.effective.map((option) =>
    option.name === 'authority_dir' ? { ...option, value: config.authorityDir } : option,
  );
  return { config, effective };
}

export function parseSfmdConfig(source: string, fileName: string): SfmdConfig {
  return configureSfmd({ fileName, text: source }).config;
}

function sfmdConfig(layers: ConfigRead<z.infer<z.ZodObject<typeof SFMD>>>): SfmdConfig {
  const read = layers.values;
  const common = commonConfig(layers);
  return {
    clusterid: read.clusterid,
    masterListenPort: read.master_listen_port,
    listenAddress: read.address,
    clusterHosts: read.cluster_hosts.map(({ host, cpus, RAM }) => {
      const [unicast, multicast] = typeof host === 'string' ? [host, host] : host;
      return { host: unicast, multicastHost: multicast, cpus, ramBytes: RAM };
    }),
    limits: {
      vmsPerCluster: read.vms_per_cluster,
      vmsPerHost: read.vms_per_host,
      ticketsPerCluster: read.tickets_per_cluster,
      clusters: read.max_clusters,
      blockedRequests: read.blocked_requests,
      forkReservePercent: read.fork_reserve,
      hostTimeoutMs: read.host_timeout * 1000,
    },
    networkMode: read.network_mode,
    detachClones: read.detach_clones === 'always',
    pushPages: read.push_pages === 'auto',
    compressPages: read.compress_pages === 'auto',
    networkWhitelist: read.network_whitelist,
    networkNameservers: read.network_nameservers,
    bandwidthCap: read.bandwidth_cap,
    enrollPort: read.enroll_port,
    authorityDir: read.authority_dir ?? join(common.stateDir, 'authority'),
    ...common,
  };
}

export function readSfmdConfig(fileName: string): SfmdConfig {
  return parseSfmdConfig(readConfigText(fileName), fileName);
}
