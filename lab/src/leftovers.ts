// What there is of a lab on this machine: processes, mounts, namespaces, devices, files. After `down`: nothing.

import { existsSync } from 'node:fs';
import { readdir, readFile } from 'node:fs/promises';
import { listLinks, parseLinkName, runTool } from '@snowflock/network';
import { isLabNetns, labDir, namespaceOf } from './names.ts';
import { networksOf, readRecord } from './record.ts';

export interface Leftover {
  readonly kind: 'process' | 'mount' | 'namespace' | 'device' | 'file';
  /** For people: pid and command line, mount point, name, path. */
  readonly what: string;
}

export async function labNamespaces(name: string): Promise<string[]> {
  const text = await runTool('ip', ['netns', 'list']);
  const names = text.split('\n').map((line) => line.split(' ')[0] ?? '');
  return names.filter((netns) => isLabNetns(name, netns));
}

/** Mounts of the caller's mount namespace at or below a folder, deepest first. */
export async function mountsBelow(dir: string, pid: number | 'self' = 'self'): Promise<string[]> {
  const text = await readFile(`/proc/${pid}/mountinfo`, 'utf8');
  const points = text.split('\n').map((line) => unescapeMount(line.split(' ')[4] ?? ''));
  return points.filter((point) => point === dir || point.startsWith(`${dir}/`)).reverse();
}

function unescapeMount(text: string): string {
  return text.replace(/\\([0-7]{3})/g, (_, octal: string) => String.fromCharCode(parseInt(octal, 8)));
}

/** Live processes whose network namespace is one of these. */
export async function processesIn(netInodes: ReadonlySet<string>): Promise<number[]> {
  if (netInodes.size === 0) return [];
  const pids = (await readdir('/proc')).filter((entry) => /^\d+$/.test(entry)).map(Number);
  return pids.filter((pid) => netInodes.has(namespaceOf(pid, 'net') ?? ''));
}

async function describeProcess(pid: number): Promise<string> {
  try {
    const text = await readFile(`/proc/${pid}/cmdline`, 'utf8');
    return `${pid} ${text.replaceAll('\0', ' ').trim().slice(0, 200)}`;
  } catch {
    return `${pid} (just gone)`;
  }
}

/** `netInodes`: namespaces that the lab is known to have had, whether or not they still have a name. */
export async function findLeftovers(
  name: string,
  options: { readonly netInodes?: ReadonlySet<string> } = {},
): Promise<Leftover[]> {
  const found: Leftover[] = [];
  const add = (kind: Leftover['kind'], what: string): number => found.push({ kind, what });
  const record = await readRecord(name);
  const inodes = networksOf(record, options.netInodes);
  const pids = new Set(await processesIn(inodes));
  for (const netns of await labNamespaces(name)) {
    add('namespace', netns);
    for (const pid of (await runTool('ip', ['netns', 'pids', netns])).split('\n').filter(Boolean))
      pids.add(Number(pid));
    for (const link of await listLinks({ netns }))
      if (parseLinkName(link)) add('device', `${netns}: ${link}`);
  }
  for (const pid of pids) add('process', await describeProcess(pid));
  for (const mount of await mountsBelow(labDir(name))) add('mount', mount);
  if (existsSync(labDir(name))) add('file', labDir(name));
  return found;
}
