// The daemons' configuration files in a lab, in the manual's syntax (sections 11 and 12).

import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { hostAddress, hostDir, hostName, labDir } from './names.ts';

export const LAB_MASTER_PORT = 0xf10c;

function pythonString(text: string): string {
  return `'${text.replaceAll('\\', '\\\\').replaceAll("'", "\\'")}'`;
}

/** What `snowflock init` makes under /var/lib/snowflock. */
export function authorityDir(name: string): string {
  return join(labDir(name), 'authority');
}

/** What is /etc/snowflock/tls of a host. */
export function tlsDir(name: string, k: number): string {
  return join(hostDir(name, k), 'tls');
}

function tlsLines(dir: string, daemon: 'sfmd' | 'host'): string[] {
  return [
    `tls_ca = ${pythonString(join(dir, 'ca.crt'))}`,
    `tls_cert = ${pythonString(join(dir, `${daemon}.crt`))}`,
    `tls_key = ${pythonString(join(dir, `${daemon}.key`))}`,
  ];
}

export function sfldConfig({ name, k }: { name: string; k: number }): string {
  const dir = hostDir(name, k);
  return [
    `# sfld of lab '${name}', host ${k}`,
    `hostname = ${pythonString(hostName(k))}`,
    `address = ${pythonString(hostAddress(k))}`,
    `master_host = ${pythonString(hostAddress(1))}`,
    `master_port = 0x${LAB_MASTER_PORT.toString(16).toUpperCase()}`,
    'local_listen_port = 0xC01F',
    `state_dir = ${pythonString(join(dir, 'state'))}`,
    `run_dir = ${pythonString(join(dir, 'run'))}`,
    ...tlsLines(tlsDir(name, k), 'host'),
    '',
  ].join('\n');
}

export interface SfmdConfigOptions {
  readonly name: string;
  readonly hosts: number;
  readonly cpus: number;
  readonly ramBytes: number;
  /** More lines of its configuration file. */
  readonly sfmdOptions?: readonly string[] | undefined;
  /** 'unicast' if not said. */
  readonly networkMode?: LabNetworkMode | undefined;
}

/** How memory reaches clones; what sfmd calls network_mode. */
export type LabNetworkMode = 'unicast' | 'multicast' | 'relay' | 'auto';

export function sfmdConfig(options: SfmdConfigOptions): string {
  const { name, hosts, cpus, ramBytes, networkMode = 'unicast', sfmdOptions = [] } = options;
  const dir = hostDir(name, 1);
  const entry = (k: number): string =>
    `    {'host': ${pythonString(hostName(k))}, 'cpus': ${cpus}, 'RAM': ${ramBytes}},`;
  return [
    `# sfmd of lab '${name}'`,
    `hostname = ${pythonString(hostName(1))}`,
    `address = ${pythonString(hostAddress(1))}`,
    `master_listen_port = 0x${LAB_MASTER_PORT.toString(16).toUpperCase()}`,
    'cluster_hosts = [',
    ...Array.from({ length: hosts }, (_, index) => entry(index + 1)),
    ']',
    `network_mode = ${pythonString(networkMode)}`,
    `state_dir = ${pythonString(join(dir, 'master-state'))}`,
    `run_dir = ${pythonString(join(dir, 'master-run'))}`,
    `authority_dir = ${pythonString(authorityDir(name))}`,
    ...tlsLines(tlsDir(name, 1), 'sfmd'),
    ...sfmdOptions,
    '',
  ].join('\n');
}

/** /etc/hosts of every lab host. */
export function hostsFile(hosts: number): string {
  const lines = Array.from(
    { length: hosts },
    (_, index) => `${hostAddress(index + 1)} ${hostName(index + 1)}`,
  );
  return ['127.0.0.1 localhost', '::1 localhost', ...lines, ''].join('\n');
}

/** Writes configuration files, /etc/hosts and the folders of all hosts. */
export async function writeHostFiles(options: SfmdConfigOptions): Promise<void> {
  const { name, hosts } = options;
  await writeFile(join(labDir(name), 'hosts'), hostsFile(hosts));
  for (let k = 1; k <= hosts; k++) {
    const dir = hostDir(name, k);
    const folders = k === 1 ? ['state', 'run', 'master-state', 'master-run'] : ['state', 'run'];
    for (const folder of folders) await mkdir(join(dir, folder), { recursive: true, mode: 0o700 });
    await writeFile(join(dir, 'sfld.cfg'), sfldConfig({ name, k }));
  }
  await writeFile(join(hostDir(name, 1), 'sfmd.cfg'), sfmdConfig(options));
}
