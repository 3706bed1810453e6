// Debian's cloud kernel, taken from its package without installing it: the uncompressed kernel and the modules a VM needs.

import { mkdir, readdir, readFile, writeFile } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { SnowflockError } from '@snowflock/protocol';
import { run } from './command.ts';

export const KERNEL_PACKAGE = 'linux-image-cloud-amd64';

/**
 * In loading order. A module that the kernel has built in is skipped: newer cloud kernels have several of these built in.
 * virtio_pci_legacy_dev only satisfies virtio_pci's symbols.
 */
export const MODULES = [
  'virtio_ring',
  'virtio',
  'virtio_pci_legacy_dev',
  'virtio_pci_modern_dev',
  'virtio_pci',
  'virtio_console',
  'virtio_blk',
  'virtio-rng',
  'virtio_balloon',
  'failover',
  'net_failover',
  'virtio_net',
  // for the agent, which ends a clone's TCP connections
  'inet_diag',
  'tcp_diag',
] as const;

export interface Kernel {
  /** Path of the uncompressed ELF kernel. */
  readonly path: string;
  readonly packageName: string;
  readonly version: string;
  /** In loading order. */
  readonly modules: readonly { readonly name: string; readonly data: Buffer }[];
}

export async function fetchKernel(workDirectory: string, signal: AbortSignal | undefined): Promise<Kernel> {
  const download = join(workDirectory, 'kernel-package');
  const root = join(workDirectory, 'kernel-root');
  await mkdir(download);
  const meta = await downloadPackage(KERNEL_PACKAGE, download, signal);
  const depends = await run('dpkg-deb', ['-f', meta, 'Depends'], { signal });
  const packageName = /linux-image-\S+/.exec(depends)?.[0];
  if (!packageName)
    throw new SnowflockError('internal', `${KERNEL_PACKAGE} depends on no kernel image: '${depends.trim()}'`);
  const deb = await downloadPackage(packageName, download, signal);
  await run('dpkg-deb', ['-x', deb, root], { signal });
  const release = packageName.slice('linux-image-'.length);
  const path = join(workDirectory, 'vmlinux');
  await writeFile(
    path,
    await uncompress(await readFile(join(root, 'boot', `vmlinuz-${release}`)), workDirectory, signal),
  );
  return {
    path,
    packageName,
    version: (await run('dpkg-deb', ['-f', deb, 'Version'], { signal })).trim(),
    modules: await readModules(join(root, 'lib/modules', release)),
  };
}

/** The path of its .deb. */
export async function downloadPackage(
  name: string,
  into: string,
  signal: AbortSignal | undefined,
): Promise<string> {
  const before = new Set(await readdir(into));
  try {
    // 'root': the sandbox user of apt may not write here.
    await run('apt-get', ['-q', '-o', 'APT::Sandbox::User=root', 'download', name], { cwd: into, signal });
  } catch (error) {
    if (error instanceof SnowflockError && error.code === 'internal')
      throw new SnowflockError(
        'unavailable',
        `cannot download ${name}; 'apt-get update' may help. ${error.message}`,
        { cause: error },
      );
    throw error;
  }
  const file = (await readdir(into)).find((entry) => entry.endsWith('.deb') && !before.has(entry));
  if (!file) throw new SnowflockError('internal', `apt-get download ${name} left no package`);
  return join(into, file);
}

async function readModules(directory: string): Promise<{ name: string; data: Buffer }[]> {
  const files = new Map<string, string>();
  for (const file of await readdir(join(directory, 'kernel'), { recursive: true }))
    if (file.endsWith('.ko')) files.set(basename(file, '.ko'), file);
  const builtIn = await readFile(join(directory, 'modules.builtin'), 'utf8');
  const modules: { name: string; data: Buffer }[] = [];
  for (const name of MODULES) {
    const file = files.get(name);
    if (file) modules.push({ name, data: await readFile(join(directory, 'kernel', file)) });
    else if (!builtIn.includes(`/${name}.ko`) && name !== 'virtio_pci_legacy_dev')
      throw new SnowflockError('internal', `the kernel in ${directory} has no module ${name}`);
  }
  return modules;
}

/** Where a bzImage holds its compressed kernel (kernel: Documentation/arch/x86/boot.rst). */
const SETUP_SECTS_AT = 0x1f1;
const PAYLOAD_OFFSET_AT = 0x248;
const PAYLOAD_LENGTH_AT = 0x24c;

const COMPRESSIONS = [
  { magic: Buffer.from([0x02, 0x21, 0x4c, 0x18]), tool: 'lz4' },
  { magic: Buffer.from([0x28, 0xb5, 0x2f, 0xfd]), tool: 'zstd' },
  { magic: Buffer.from([0xfd, 0x37, 0x7a, 0x58, 0x5a]), tool: 'xz' },
  { magic: Buffer.from([0x1f, 0x8b]), tool: 'gzip' },
] as const;

async function uncompress(
  bzImage: Buffer,
  workDirectory: string,
  signal: AbortSignal | undefined,
): Promise<Buffer> {
  const start =
    ((bzImage.readUInt8(SETUP_SECTS_AT) || 4) + 1) * 512 + bzImage.readUInt32LE(PAYLOAD_OFFSET_AT);
  // The payload ends with four bytes that tell its uncompressed size; they are not part of the compressed stream.
  const payload = bzImage.subarray(start, start + bzImage.readUInt32LE(PAYLOAD_LENGTH_AT) - 4);
  const compression = COMPRESSIONS.find(({ magic }) => payload.subarray(0, magic.length).equals(magic));
  if (!compression)
    throw new SnowflockError('internal', 'the kernel is compressed in a way this program does not know');
  const from = join(workDirectory, 'vmlinux.compressed');
  const to = join(workDirectory, 'vmlinux.elf');
  await writeFile(from, payload);
  await run('sh', ['-c', `${compression.tool} -dc < "$1" > "$2"`, 'sh', from, to], { signal });
  const elf = await readFile(to);
  if (elf.readUInt32BE(0) !== 0x7f454c46)
    throw new SnowflockError('internal', 'the uncompressed kernel is not an ELF file');
  return elf;
}
