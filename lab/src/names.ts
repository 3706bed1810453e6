// Names, addresses and paths of a lab, all of which follow from its name and a host's number (1..N).

import { readlinkSync } from 'node:fs';
import { join } from 'node:path';
import { SnowflockError } from '@snowflock/protocol';

export const DEFAULT_LAB_NAME = 'lab';
/** A switch port, an address and two daemons each; more than any one machine runs in practice. */
export const LAB_HOSTS_MAX = 64;
const NAME = /^[a-z](?:[a-z0-9-]{0,22}[a-z0-9])?$/;
/** sun_path of a unix socket, without its NUL. */
const SOCKET_PATH_MAX = 107;
const NETWORK = '10.231.0';
export const LAB_PREFIX = 24;
export const SWITCH_BRIDGE = 'br0';

export function checkLabName(name: string): string {
  if (NAME.test(name)) return name;
  throw new SnowflockError(
    'bad-request',
    `'${name}' cannot be the name of a lab: use up to 24 lower-case letters, digits and '-', a letter first`,
  );
}

/** Where labs keep their state; SNOWFLOCK_LAB_DIR overrides. */
export function labParent(): string {
  return process.env.SNOWFLOCK_LAB_DIR ?? '/run/snowflock';
}

export function labDir(name: string): string {
  return join(labParent(), `lab-${checkLabName(name)}`);
}

export function hostDir(name: string, k: number): string {
  return join(labDir(name), `host-${k}`);
}

/** The unix socket of a lab host's sfld. */
export function hostSocket(name: string, k: number): string {
  const path = join(hostDir(name, k), 'run', 'sfld.sock');
  if (path.length <= SOCKET_PATH_MAX) return path;
  throw new SnowflockError(
    'bad-request',
    `${path} is too long for a unix socket; use a shorter SNOWFLOCK_LAB_DIR`,
  );
}

export function hostName(k: number): string {
  return `host${k}`;
}

export function hostAddress(k: number): string {
  return `${NETWORK}.${k}`;
}

export function switchNetns(name: string): string {
  return `sf-${name}-sw`;
}

export function hostNetns(name: string, k: number): string {
  return `sf-${name}-${k}`;
}

/** The switch's end of a host's cable. */
export function switchPort(k: number): string {
  return `h${k}`;
}

/** Whether a network namespace belongs to this lab. */
export function isLabNetns(name: string, netns: string): boolean {
  const prefix = `sf-${name}-`;
  return netns.startsWith(prefix) && /^(sw|\d{1,3})$/.test(netns.slice(prefix.length));
}

/** Inode of a process's namespace, or undefined when the process is gone (or a zombie). */
export function namespaceOf(pid: number, kind: 'net' | 'mnt'): string | undefined {
  try {
    return readlinkSync(`/proc/${pid}/ns/${kind}`);
  } catch {
    return undefined; // gone, which is the answer
  }
}
