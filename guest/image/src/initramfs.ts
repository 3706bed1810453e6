// The initramfs of every image: busybox, the modules, the agent and the commands. It is the micro image's whole system, and what finds and
// mounts the disk of the others.

import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { SnowflockError } from '@snowflock/protocol';
import { run } from './command.ts';
import {
  encodeCpio,
  MODE_CHARACTER,
  MODE_DIRECTORY,
  MODE_FILE,
  MODE_SYMLINK,
  type CpioEntry,
} from './cpio.ts';
import { GUEST_LINKS, GUEST_PROGRAMS } from './guest-tools.ts';
import type { Kernel } from './kernel.ts';

export const BUSYBOX_PACKAGE = 'busybox-static';
const BUSYBOX = '/bin/busybox';
/** Where sf-init looks for modules. */
const MODULE_DIRECTORY = 'lib/snowflock/modules';

const DIRECTORIES = [
  'bin',
  'dev',
  'disk',
  'etc',
  'lib/snowflock',
  MODULE_DIRECTORY,
  'proc',
  'root',
  'run',
  'sbin',
  'sys',
  'tmp',
];
const MORE_DIRECTORIES = ['lib', 'usr', 'usr/bin', 'usr/sbin', 'usr/lib', 'usr/lib/snowflock', 'var'];

const TEXT_FILES: Readonly<Record<string, string>> = {
  'etc/passwd': 'root:x:0:0:root:/root:/bin/sh\n',
  'etc/group': 'root:x:0:\n',
  'etc/hosts': '127.0.0.1 localhost\n',
  'etc/profile': `PS1='\\h:\\w# '\n`,
};

export async function buildInitramfs(
  tools: string,
  kernel: Kernel,
  signal: AbortSignal | undefined,
): Promise<Buffer> {
  const applets = await busyboxApplets(signal);
  const entries: CpioEntry[] = [...DIRECTORIES, ...MORE_DIRECTORIES]
    .sort()
    .map((path) => ({ path, mode: MODE_DIRECTORY | (path === 'tmp' ? 0o1777 : 0o755) }));
  const file = (path: string, mode: number, data: Buffer | string): void => {
    entries.push({ path, mode: MODE_FILE | mode, data: Buffer.from(data) });
  };
  const symlink = (path: string, target: string): void => {
    entries.push({ path, mode: MODE_SYMLINK | 0o777, data: Buffer.from(target) });
  };
  // The kernel opens the first process's stdio before anything is mounted.
  entries.push({ path: 'dev/console', mode: MODE_CHARACTER | 0o600, device: { major: 5, minor: 1 } });
  file('bin/busybox', 0o755, await readFile(BUSYBOX));
  for (const applet of applets) symlink(`bin/${applet}`, 'busybox');
  file('init', 0o755, await readFile(join(tools, 'sf-init')));
  for (const [from, to] of GUEST_PROGRAMS) file(to, 0o755, await readFile(join(tools, from)));
  for (const [path, target] of GUEST_LINKS) symlink(path, target);
  kernel.modules.forEach(({ name, data }, index) => {
    file(`${MODULE_DIRECTORY}/${String(index).padStart(2, '0')}-${name}.ko`, 0o644, data);
  });
  for (const [path, text] of Object.entries(TEXT_FILES)) file(path, 0o644, text);
  symlink('var/run', '../run');
  return encodeCpio(entries);
}

async function busyboxApplets(signal: AbortSignal | undefined): Promise<string[]> {
  try {
    const list = await run(BUSYBOX, ['--list'], { signal });
    return list.split('\n').filter((name) => name !== '' && name !== 'busybox' && name !== 'init');
  } catch (error) {
    throw new SnowflockError('unavailable', `${BUSYBOX} does not run: apt-get install ${BUSYBOX_PACKAGE}`, {
      cause: error,
    });
  }
}
